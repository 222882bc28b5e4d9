//! Containers of a program that notices what is lost: `counter.py`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::harness::lab::{Bundle, attempt, directory, run, text};
use crate::harness::mount::eventually;

/// The image of podman's.
pub(crate) const IMAGE: &str = "localhost/counter:1";
/// What runs in it.
const PROGRAM: &str = include_str!("counter.py");

/// What a container runs that counts every `pause` seconds and holds so many MiB of random bytes.
pub(crate) fn command(pause: &str, ballast: u32) -> Vec<String> {
    ["/bin/python3", "-I", "-S", "-B", "/counter.py", pause]
        .map(str::to_owned)
        .into_iter()
        .chain([ballast.to_string(), if takes_tcp() { "tcp" } else { "" }.to_owned()])
        .collect()
}

/// CRIU before 4.2 cannot dump an internet socket on Linux 6.16 and later (criu #2718).
pub(crate) fn takes_tcp() -> bool {
    let number = |text: &str| {
        let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap(), parts.next().unwrap())
    };
    let kernel = number(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap());
    let criu = run(&["criu", "--version"]);
    kernel < (6, 16) || number(criu.lines().next().unwrap().strip_prefix("Version: ").unwrap()) >= (4, 2)
}

/// A root with python in it, and as little else as it starts with.
fn tree() -> &'static Path {
    static TREE: OnceLock<PathBuf> = OnceLock::new();
    TREE.get_or_init(|| {
        let root = directory().keep();
        let script = r#"
            set -e; cd "$1"
            mkdir -p bin dev etc proc sys tmp run root lib64 lib/x86_64-linux-gnu usr/lib/python3/encodings
            chmod 1777 tmp; cp /bin/busybox bin/busybox; chroot . /bin/busybox --install -s /bin
            python=$(readlink -f /usr/bin/python3); cp "$python" bin/python3.real
            ldd "$python" | awk '$3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }' | while read -r library; do
                mkdir -p ".$(dirname "$library")"; cp -L "$library" ".$library"
            done
            home=$(python3 -c 'import os; print(os.path.dirname(os.__file__))')
            mkdir -p ".$home"
            for part in encodings codecs.py io.py abc.py; do cp -r "$home/$part" ".$home/"; done
            find ".$home" -name __pycache__ -prune -exec rm -r {} +
            mv bin/python3.real "./$python"  2>/dev/null || { mkdir -p ".$(dirname "$python")"; mv bin/python3.real ".$python"; }
            ln -s "$python" bin/python3
        "#;
        run(&["sh", "-c", script, "sh", text(&root)]);
        fs::write(root.join("counter.py"), PROGRAM).unwrap();
        root
    })
}

/// podman's image of that root.
pub(crate) fn image() {
    if attempt(&["podman", "image", "exists", IMAGE]).code != 0 {
        let script = format!("tar -C {} --numeric-owner -cf - . | podman import --quiet - {IMAGE}", tree().display());
        run(&["sh", "-c", &script]);
    }
}

/// A bundle of that root on an overlay; with a network namespace of its own if that is wanted.
pub(crate) fn bundle(
    runtime: &'static str,
    states: &Path,
    name: &str,
    pause: &str,
    ballast: u32,
    network: bool,
) -> Bundle {
    let bundle = Bundle::on(tree(), runtime, states, name);
    bundle.configure(|spec| {
        spec["process"]["args"] = command(pause, ballast).into();
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        if network {
            namespaces.push(serde_json::json!({ "type": "network" }));
        }
    });
    bundle
}

/// What a running counter says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) counted: u64,
}

/// Ask the counter whose first process is `pid`; what it says must fit together.
pub(crate) fn ask(pid: u32) -> Said {
    let mut answer = String::new();
    eventually("the counter answers", || {
        let socket = UnixStream::connect(format!("/proc/{pid}/root/socket"));
        let mut line = String::new();
        let read = socket.and_then(|socket| BufReader::new(socket).read_line(&mut line));
        answer = line;
        read.is_ok() && answer.ends_with('\n')
    });
    if takes_tcp() {
        let net = format!("--net=/proc/{pid}/ns/net");
        let over_tcp = run(&["nsenter", &net, "busybox", "nc", "-w", "5", "127.0.0.1", "7000"]);
        assert_eq!(over_tcp.split_whitespace().count(), 4, "{over_tcp}");
    }
    let numbers: Vec<u64> = answer.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let [counted, piped, nameless, shared] = numbers[..] else { panic!("{answer}") };
    // The numbers are read one after the other while it counts.
    for other in [piped, nameless, shared] {
        assert!(counted.abs_diff(other) <= 3, "{answer}");
    }
    Said { counted }
}

/// Each number is in the log once, from one on; the last.
pub(crate) fn check_log(root: &Path) -> u64 {
    let log = fs::read_to_string(root.join("log")).unwrap();
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    let mut last = 0;
    for line in whole.lines() {
        let number: u64 = line.parse().unwrap();
        assert_eq!(number, last + 1, "of {} lines", whole.lines().count());
        last = number;
    }
    last
}

/// That it goes on from where it was.
pub(crate) fn check_runs(pid: u32, root: &Path, from: u64) {
    let said = ask(pid);
    assert!(said.counted >= from, "{said:?} is before {from}");
    eventually("it counts on", || ask(pid).counted > said.counted);
    assert!(check_log(root) >= from);
}
