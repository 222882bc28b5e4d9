//! A container of runc or crun: an overlay, a specification, and the runtime told to make it.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::criu::explain;
use crate::progress::Progress;
use crate::restore::options::Tcp;
use crate::restore::place::Place;
use crate::restore::spec::{Own, Provided};
use crate::restore::{Error, unpack};
use crate::sys::ground::Ground;
use crate::sys::process::{self, Program};
use crate::sys::tracer;

/// How long a runtime may take for what is done at once.
const ASK: Duration = Duration::from_secs(20);
/// How long it may take to make processes of a dump: at 100 MB a second, 60 GB.
const RESTORE: Duration = Duration::from_secs(600);
/// The longest file that is copied for a container, such as its /etc/hosts.
const LONGEST: u64 = 1 << 20;
/// The longest log that is read.
const LONGEST_LOG: u64 = 16 << 20;
const CONFIG: &str = "config.json";
const ROOTFS: &str = "rootfs";

/// Makes a container in a place.
#[derive(Debug)]
pub(super) struct Bundle<'a> {
    place: &'a Place<'a>,
    program: Program,
}

impl Bundle<'_> {
    pub(super) fn new<'a>(place: &'a Place<'a>) -> Result<Bundle<'a>, Error> {
        Ok(Bundle { place, program: place.note.program()? })
    }

    pub(super) fn own(&self) -> Own<'_> {
        Own { name: &self.place.name, cgroup: &self.place.note.cgroup, root: ROOTFS }
    }

    /// Its root on the host.
    pub(super) fn root(&self) -> PathBuf {
        self.place.path.join(ROOTFS)
    }

    /// The specification that the runtime makes by itself.
    pub(super) fn default_spec(&self) -> Result<Value, Error> {
        let path = self.place.path.join(CONFIG);
        let program =
            self.program.clone().arguments(["spec".as_ref(), "--bundle".as_ref(), self.place.path.as_os_str()]);
        program.run(ASK).and_then(process::Output::check).map_err(|error| self.failed(error.to_string()))?;
        let bytes = fs::read(&path).map_err(Error::files("read", &path))?;
        serde_json::from_slice(&bytes).map_err(|error| self.failed(format!("its default is no JSON: {error}")))
    }

    pub(super) fn write_spec(&self, spec: &Value) -> Result<(), Error> {
        let path = self.place.path.join(CONFIG);
        fs::write(&path, spec.to_string()).map_err(Error::files("write", &path))
    }

    /// Mount its root: what it changes goes to a directory of its own. A program mounts it, because `lower` may lie on our
    /// own mount, which nobody here touches.
    pub(super) fn mount(&self, lower: &Path, limit: Duration) -> Result<(), Error> {
        let (upper, work) = (self.place.directory("upper")?, self.place.directory("work")?);
        let root = self.place.directory(ROOTFS)?;
        // The root of an overlay is its upper directory's.
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&upper, fs::Permissions::from_mode(0o755)).map_err(Error::files("open", &upper))?;
        let mut options = String::new();
        for (key, path) in [("lowerdir", lower), ("upperdir", &upper), ("workdir", &work)] {
            let text = path.to_str().filter(|text| !text.contains([',', ':', '\\', '"']));
            let odd = || {
                Error::Unsupported(format!(
                    "no overlay can be made of {}: mount(8) splits its path at a comma, a colon or a backslash; move the store",
                    path.display()
                ))
            };
            options.push_str(&format!("{}{key}={}", if options.is_empty() { "" } else { "," }, text.ok_or_else(odd)?));
        }
        self.run_mount(&["-t", "overlay", "-o", &options, "snapfs"], &root, limit)
    }

    fn run_mount(&self, words: &[&str], at: &Path, limit: Duration) -> Result<(), Error> {
        let program =
            Program::find("mount").map_err(|source| Error::Missing { program: "mount".to_owned(), source })?;
        let program = program.variable(tracer::MARK, self.place.note.mark()).arguments(words).argument(at);
        let output = program.run(limit).and_then(process::Output::check);
        output.map(drop).map_err(|error| self.failed(error.to_string()))
    }

    /// Make what engines make anew for each container, and have the specification mount it.
    pub(super) fn provide(
        &self,
        spec: &mut Value,
        provided: &[Provided],
        shared_memory: Option<&fs::File>,
        progress: &Progress,
    ) -> Result<(), Error> {
        for one in provided {
            let path = self.place.directory("mounts")?.join(one.at.to_string());
            match one.destination.as_str() {
                "/dev/shm" => {
                    self.place.directory(&format!("mounts/{}", one.at))?;
                    self.run_mount(&["-t", "tmpfs", "-o", "mode=1777,nosuid,nodev,noexec", "shm"], &path, ASK)?;
                    if let Some(tar) = shared_memory {
                        let ground = Ground::open(&path).map_err(Error::files("open", &path))?;
                        unpack::tar(tar, "devshm-checkpoint.tar", &ground, progress)?;
                    }
                }
                "/run/secrets" => drop(self.place.directory(&format!("mounts/{}", one.at))?),
                destination => {
                    let copied = one.source.as_deref().and_then(read_small);
                    let text = copied.unwrap_or_else(|| made_up(destination, &spec["hostname"]));
                    fs::write(&path, text).map_err(Error::files("write", &path))?;
                }
            }
            let mount = &mut spec["mounts"][one.at];
            mount["source"] = json!(path);
            mount["type"] = json!("bind");
        }
        Ok(())
    }

    /// Mount a volume's files, as they were, in the place of the volume.
    pub(super) fn volume(
        &self,
        spec: &mut Value,
        destination: &str,
        tar: &fs::File,
        progress: &Progress,
    ) -> Result<(), Error> {
        let mounts = spec["mounts"].as_array_mut().into_iter().flatten().enumerate();
        let mut mounts = mounts.filter(|(_, mount)| mount["destination"] == destination);
        let Some((at, mount)) = mounts.next() else { return Ok(()) };
        let path = self.place.directory(&format!("mounts/{at}"))?;
        let ground = Ground::open(&path).map_err(Error::files("open", &path))?;
        unpack::tar(tar, &format!("the volume at {destination}"), &ground, progress)?;
        mount["source"] = json!(path);
        Ok(())
    }

    /// Make the container and, unless it is to wait, start it.
    pub(super) fn create(&self, start: bool) -> Result<(), Error> {
        let bundle = self.place.path.as_os_str();
        let name = self.place.name.as_ref();
        self.run(&["create".as_ref(), "--bundle".as_ref(), bundle, name], ASK)?;
        if start { self.run(&["start".as_ref(), name], ASK) } else { Ok(()) }
    }

    /// Make its processes of the dump in `images`; `work` is for CRIU's log.
    pub(super) fn restore(&self, images: &Path, work: &Path, tcp: Tcp) -> Result<(), Error> {
        let mut words = vec!["restore".as_ref(), "--detach".as_ref(), "--bundle".as_ref(), self.place.path.as_os_str()];
        words.extend(["--image-path".as_ref(), images.as_os_str(), "--work-path".as_ref(), work.as_os_str()]);
        words.extend(["--file-locks", "--ext-unix-sk"].map(std::ffi::OsStr::new));
        match tcp {
            Tcp::Established => words.push("--tcp-established".as_ref()),
            Tcp::Close if self.place.note.engine == "crun" => words.push("--tcp-close".as_ref()),
            // runc cannot say it, and CRIU reads it from the file that the specification names.
            Tcp::Close | Tcp::None => {}
        }
        words.push(self.place.name.as_ref());
        self.run(&words, RESTORE).map_err(|error| match error {
            Error::Program { program, name, why } => {
                let log = read_log(&work.join("restore.log"));
                let why = explain(&log).unwrap_or(why);
                Error::Program { program, name, why }
            }
            error => error,
        })
    }

    /// Have CRIU close the connections of the dump, where the runtime has no word for it.
    pub(super) fn close_connections(&self, spec: &mut Value) -> Result<(), Error> {
        let path = self.place.path.join("criu.conf");
        fs::write(&path, "tcp-close\n").map_err(Error::files("write", &path))?;
        if !spec["annotations"].is_object() {
            spec["annotations"] = json!({});
        }
        spec["annotations"]["org.criu.config"] = json!(path);
        Ok(())
    }

    /// The container would hold the runtime's own outputs for good, so that these are /dev/null, and errors go to a file.
    fn run(&self, words: &[&std::ffi::OsStr], limit: Duration) -> Result<(), Error> {
        let log = self.place.path.join("log");
        // There is none at first.
        let _ = fs::remove_file(&log);
        let program = self.program.clone().arguments(["--log".as_ref(), log.as_os_str()]).arguments(words).silent();
        let status = program.run(limit).map_err(|error| self.failed(error.to_string()))?.status;
        if status.success() {
            return Ok(());
        }
        let text = read_log(&log);
        let line = text.lines().rev().find(|line| !line.trim().is_empty()).map_or_else(|| status.to_string(), message);
        Err(self.failed(line))
    }

    fn failed(&self, why: String) -> Error {
        Error::Program { program: self.place.note.engine.clone(), name: self.place.name.clone(), why }
    }
}

/// What a line of a runtime's log says; runc writes `time=… level=… msg="…"`.
fn message(line: &str) -> String {
    let text = line.split_once("msg=").map_or(line, |(_, text)| text.trim().trim_matches('"'));
    text.replace("\\\"", "\"").chars().filter(|c| !c.is_control()).take(400).collect()
}

fn read_log(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        // What there is of it.
        let _ = file.take(LONGEST_LOG).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A small file of the host's that an engine made for the original.
fn read_small(path: &str) -> Option<Vec<u8>> {
    use std::os::unix::fs::OpenOptionsExt;
    const NOT_WAITING: i32 = 0o4000;
    let file = fs::File::options().read(true).custom_flags(NOT_WAITING).open(path).ok()?;
    let is_small = file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() <= LONGEST);
    let mut bytes = Vec::new();
    let read = is_small.then(|| file.take(LONGEST).read_to_end(&mut bytes).ok()).flatten();
    read.map(|_| bytes)
}

/// What the file says where there is none to copy.
fn made_up(destination: &str, hostname: &Value) -> Vec<u8> {
    let mut text = Vec::new();
    match destination {
        "/etc/hosts" => text.extend_from_slice(b"127.0.0.1 localhost\n::1 localhost\n"),
        "/etc/hostname" => {
            // Writing to memory does not fail.
            let _ = writeln!(text, "{}", hostname.as_str().unwrap_or_default());
        }
        _ => {}
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_s_log_is_told_without_its_frame() {
        let line = r#"time="2026-01-01T00:00:00Z" level=error msg="container with given ID \"x\" already exists""#;
        assert_eq!(message(line), "container with given ID \"x\" already exists");
        assert_eq!(message("2026-01-01T00:00:00Z: cannot\u{1b} start"), "2026-01-01T00:00:00Z: cannot start");
    }

    #[test]
    fn only_small_regular_files_are_copied() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("hosts"), "x").unwrap();
        fs::File::create(path("long")).unwrap().set_len(LONGEST + 1).unwrap();
        assert_eq!(read_small(&path("hosts")), Some(b"x".to_vec()));
        assert_eq!((read_small(&path("long")), read_small(&path("none")), read_small(&path(""))), (None, None, None));
        assert_eq!(made_up("/etc/hostname", &json!("web")), b"web\n");
    }
}
