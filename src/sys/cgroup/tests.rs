use std::path::{Path, PathBuf};

use super::{Blocked, Cgroups, Error, Freezer, Version};

#[test]
fn a_path_that_is_not_plainly_below_the_mount_is_refused() {
    for path in [
        "",
        "/",
        "/etc",
        "freezer/x",
        "/sys/fs/cgroup",
        "/sys/fs/cgroup/",
        "/sys/fs/cgroup/..",
        "/sys/fs/cgroup/../../kernel",
        "/sys/fs/cgroup/freezer/../../../../etc",
        "/sys/fs/cgroups/x",
        "/tmp/../sys/fs/cgroup/freezer/x",
    ] {
        let error = Freezer::at(Path::new(path)).unwrap_err();
        assert!(matches!(&error, Error::NotCgroup { path: named } if named == Path::new(path)), "{path}: {error}");
    }
}

#[test]
fn a_group_that_is_not_there_is_gone() {
    let path = PathBuf::from("/sys/fs/cgroup/snapfs-no-such-hierarchy/x");
    assert!(matches!(Freezer::at(&path), Err(Error::Gone { .. })));
    let one = Cgroups { v1_freezer: Some(path), v2: None };
    assert!(matches!(Freezer::open(&one, 1, &[]), Err(Error::Gone { .. })));
    assert!(matches!(Freezer::open(&Cgroups::default(), 1, &[]), Err(Error::NotMember { pid: 1, .. })));
}

#[test]
fn versions_are_read_as_they_are_written() {
    for version in [Version::V1, Version::V2] {
        assert_eq!(Version::parse(&version.to_string()), Some(version));
    }
    assert_eq!(Version::parse("v3"), None);
}

#[test]
fn the_message_says_who_would_not_stop() {
    assert!(Blocked::list(&[]).contains("started anew"));
    let task = Blocked { tid: 7, comm: "cat".to_owned(), wchan: "folio_wait_bit".to_owned() };
    assert!(Blocked::list(&[task]).ends_with("cat (thread 7, in folio_wait_bit)"));
}
