use std::path::{Path, PathBuf};

use crate::engine::mountinfo::{Hierarchy, find, locate, parse, parse_cgroups};

fn paths(texts: &[&str]) -> Vec<PathBuf> {
    texts.iter().map(PathBuf::from).collect()
}

/// The only line's overlay, from the options of the file system.
fn overlay(options: &str) -> Option<(Vec<PathBuf>, PathBuf, bool, Vec<String>)> {
    let text = format!("50 43 0:49 / /merged rw,relatime shared:1 master:2 - overlay overlay {options}\n");
    let mounts = parse(text.as_bytes());
    assert_eq!(mounts.len(), 1, "{text}");
    mounts[0].overlay().map(|found| (found.lower, found.upper, found.user_xattrs, found.rest))
}

#[test]
fn overlays_in_every_spelling() {
    let check = |options: &str, lower: &[&str], upper: &str, rest: &[&str]| {
        let rest: Vec<String> = rest.iter().map(|&option| option.to_owned()).collect();
        let user_xattrs = options.contains("userxattr");
        assert_eq!(overlay(options), Some((paths(lower), PathBuf::from(upper), user_xattrs, rest)), "{options}");
    };
    check("rw,lowerdir=/b:/a,upperdir=/u,workdir=/w,uuid=on", &["/b", "/a"], "/u", &["rw", "uuid=on"]);
    check("lowerdir+=/b,lowerdir+=/a,upperdir=/u,workdir=/w", &["/b", "/a"], "/u", &[]);
    // In lowerdir+ a colon is only a colon.
    check("lowerdir+=/b:c,datadir+=/d,upperdir=/u", &["/b:c"], "/u", &[]);
    check(r"lowerdir=/a\134:b:/c,upperdir=/u\134:v", &["/a:b", "/c"], "/u:v", &[]);
    check(r"lowerdir=/a\054b\040c:/d\134\134e,upperdir=/u\011v\012w", &["/a,b c", r"/d\e"], "/u\tv\nw", &[]);
    // After two colons come layers without names.
    check("lowerdir=/b:/a::/data1::/data2,upperdir=/u", &["/b", "/a"], "/u", &[]);
    check("lowerdir=/a,upperdir=/u,userxattr,metacopy=on", &["/a"], "/u", &["metacopy=on"]);
    // Too short or too large to be an escape of the kernel's.
    check(r"lowerdir=/a\04,upperdir=/u\999", &["/a04"], "/u999", &[]);
}

#[test]
fn what_is_no_overlay_to_read_apart() {
    for options in ["rw", "lowerdir=/a", "upperdir=/u", "lowerdir=l/A:l/B,upperdir=/u", "lowerdir=/a,upperdir=u/diff"] {
        assert_eq!(overlay(options), None, "{options}");
    }
    // A bind mount of a directory in an overlay.
    let mounts = parse(b"1 2 0:49 /sub / rw - overlay overlay lowerdir=/a,upperdir=/u\n");
    assert_eq!(mounts[0].overlay(), None);
    assert_eq!(parse(b"1 2 0:49 / / rw - ext4 /dev/x lowerdir=/a,upperdir=/u\n")[0].overlay(), None);
}

#[test]
fn lines_that_are_none_are_left_out() {
    let text = b"\n1 2\n1 2 x / / rw - a b c\n1 2 0:1 / / rw shared:1\n1 2 0:1 / / rw -\n1 2 0:1 / / rw - a b\n\xff\n\
        1 2 0:1 / /good\\040one rw - tmpfs  rw\n";
    let mounts = parse(text);
    assert_eq!(mounts.len(), 1);
    assert_eq!(mounts[0].mount_point, Path::new("/good one"));
    assert!(parse(&vec![b'1'; 1 << 20]).is_empty());
}

#[test]
fn the_last_mount_covers_the_others() {
    let mounts = parse(
        b"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 8:2 /part /srv rw - ext4 /dev/b rw\n3 2 0:9 / /srv rw - tmpfs t rw\n",
    );
    assert_eq!(find(&mounts, Path::new("/srv")).unwrap().device, (0, 9));
    assert_eq!(locate(&mounts, Path::new("/srv/x")), Some(((0, 9), "/x".into())));
    assert_eq!(locate(&mounts[..2], Path::new("/srv/x")), Some(((8, 2), "/part/x".into())));
    assert_eq!(locate(&mounts[..2], Path::new("/srv")), Some(((8, 2), "/part".into())));
    assert_eq!(locate(&mounts, Path::new("/srvx")), Some(((8, 1), "/srvx".into())));
    assert_eq!(locate(&[], Path::new("/srv")), None);
}

#[test]
fn hierarchies_and_the_cgroups_in_them() {
    let hybrid = parse(
        b"1 0 0:2 / /sys/fs/cgroup rw - tmpfs t rw\n2 1 0:3 / /sys/fs/cgroup/cpu rw - cgroup c rw,cpu\n\
          3 1 0:4 /lab /sys/fs/cgroup/freezer rw - cgroup c rw,freezer\n4 1 0:5 / /sys/fs/cgroup/unified rw - cgroup2 c rw\n",
    );
    let freezer = Hierarchy::freezer(&hybrid).unwrap();
    assert_eq!(freezer.directory(Path::new("/lab/x")), Some("/sys/fs/cgroup/freezer/x".into()));
    assert_eq!(freezer.directory(Path::new("/elsewhere")), None);
    let unified = Hierarchy::unified(&hybrid).unwrap();
    assert_eq!(unified.directory(Path::new("/a/b")), Some("/sys/fs/cgroup/unified/a/b".into()));
    assert_eq!(Hierarchy::freezer(&hybrid[3..]), None);

    let text = b"9:name=systemd:/s\n6:cpu,freezer:/f:with colon\n1:cpuset:/c\n0::/u\n\nnonsense\n";
    assert_eq!(parse_cgroups(text), (Some("/f:with colon".into()), Some("/u".into())));
    assert_eq!(parse_cgroups(b""), (None, None));
}
