//! What overlayfs writes into its layers beside the user's files: the kernel's `Documentation/filesystems/overlayfs.rst`.

/// Which extended attributes overlayfs keeps its marks in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// `trusted.overlay.`, unless the mount has the option `userxattr`.
    Trusted,
    /// `user.overlay.`, with the option `userxattr`: mounts made in a user namespace.
    User,
}

impl Namespace {
    /// What the names of the marks begin with.
    pub fn prefix(self) -> &'static [u8] {
        match self {
            Namespace::Trusted => b"trusted.overlay.",
            Namespace::User => b"user.overlay.",
        }
    }

    /// The name of the mark `mark`.
    pub(crate) fn name(self, mark: &str) -> Vec<u8> {
        [self.prefix(), mark.as_bytes()].concat()
    }
}

/// The marks that decide what a file in an upper or lower directory means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Marks {
    /// `opaque=y`: nothing of the layers below shows through this directory.
    pub(crate) opaque: bool,
    /// `opaque=x`: this directory may hold whiteouts in the form of [`whiteout`](Self::whiteout).
    pub(crate) has_xattr_whiteouts: bool,
    /// `whiteout`: this file of zero size is a whiteout, if its directory says that it has such.
    pub(crate) whiteout: bool,
    /// `redirect`: the layers below have this under another name.
    pub(crate) redirect: bool,
    /// `metacopy`: only the attributes are here, the content is in a layer below.
    pub(crate) metacopy: bool,
    /// `origin`: this was copied from a layer below, and has the inode number from there for those who look through the overlay.
    pub(crate) origin: bool,
    /// `nlink`: with `index=on`, this is one name of an inode whose other names may show it too without being here.
    pub(crate) indexed: bool,
}

/// The attributes of one file, sorted out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Xattrs {
    /// What overlayfs means by them.
    pub(crate) marks: Marks,
    /// What belongs into a layer.
    pub(crate) kept: Vec<(Vec<u8>, Vec<u8>)>,
    /// How many were the user's, and do not belong into a layer.
    pub(crate) dropped: u64,
}

/// Sorts the attributes of a file on disk into marks, what a layer keeps and what it does not; `namespace` is none for
/// files that no overlay has marked, because they lie in a plain directory or were read through the overlay.
///
/// Kept are `user.*`, file capabilities and access control lists. Without its list a file would have its mask as the group's
/// permissions: more than the group had. Dropped are labels that the host's policy made (`security.selinux`, `.ima`,
/// `.evm`) and `trusted.*`, which containerd refuses to apply and which an overlay above would take for its own marks.
/// A user's attribute that looks like a mark is stored escaped (`overlay.overlay.x`) and gets its own name back.
pub(crate) fn sort(xattrs: Vec<(Vec<u8>, Vec<u8>)>, namespace: Option<Namespace>) -> Xattrs {
    let mut sorted = Xattrs::default();
    for (name, value) in xattrs {
        let name = match namespace.and_then(|namespace| name.strip_prefix(namespace.prefix()).map(|x| (namespace, x))) {
            Some((namespace, mark)) => match mark.strip_prefix(b"overlay.") {
                Some(own) => [namespace.prefix(), own].concat(),
                None => {
                    read_mark(mark, &value, &mut sorted.marks);
                    continue;
                }
            },
            None => name,
        };
        if is_kept(&name) {
            sorted.kept.push((name, value));
        } else if !name.starts_with(b"security.") {
            sorted.dropped += 1;
        }
    }
    sorted.kept.sort_unstable(); // an escaped name has another place in the order
    sorted
}

fn read_mark(mark: &[u8], value: &[u8], marks: &mut Marks) {
    match mark {
        b"opaque" => {
            marks.opaque = value == b"y";
            marks.has_xattr_whiteouts = value == b"x";
        }
        b"whiteout" => marks.whiteout = true,
        b"redirect" => marks.redirect = true,
        b"metacopy" => marks.metacopy = true,
        b"nlink" => marks.indexed = true,
        b"origin" => marks.origin = true,
        _ => {} // impure, upper, uuid, protattr: bookkeeping
    }
}

fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(namespace: Option<Namespace>, names: &[&str]) -> (Vec<String>, u64) {
        let given = names.iter().map(|name| (name.as_bytes().to_vec(), b"y".to_vec())).collect();
        let sorted = sort(given, namespace);
        (sorted.kept.into_iter().map(|(name, _)| String::from_utf8(name).unwrap()).collect(), sorted.dropped)
    }

    #[test]
    fn each_namespace_strips_its_own_marks_and_unescapes_one_level() {
        let given = [
            "security.capability",
            "security.ima",
            "security.selinux",
            "system.posix_acl_access",
            "trusted.md5",
            "trusted.overlay.opaque",
            "trusted.overlay.overlay.opaque",
            "user.a",
            "user.overlay.opaque",
            "user.overlay.overlay.opaque",
            "user.overlay.overlay.overlay.x",
        ];
        let kept = |more: &[&str]| {
            [&["security.capability", "system.posix_acl_access", "user.a"], more]
                .concat()
                .iter()
                .map(|x| (*x).into())
                .collect()
        };
        let user = ["user.overlay.opaque", "user.overlay.overlay.opaque", "user.overlay.overlay.overlay.x"];
        assert_eq!(names(Some(Namespace::Trusted), &given), (kept(&user), 2));
        assert_eq!(names(Some(Namespace::User), &given), (kept(&["user.overlay.opaque", "user.overlay.overlay.x"]), 3));
        assert_eq!(names(None, &given), (kept(&user), 3));
    }

    #[test]
    fn marks_are_read_only_in_the_mounts_own_namespace() {
        let mark = |name: &str, value: &str, namespace| {
            sort(vec![(name.as_bytes().to_vec(), value.as_bytes().to_vec())], Some(namespace)).marks
        };
        let none = Marks::default();
        assert_eq!(mark("trusted.overlay.opaque", "y", Namespace::Trusted), Marks { opaque: true, ..none });
        assert_eq!(
            mark("trusted.overlay.opaque", "x", Namespace::Trusted),
            Marks { has_xattr_whiteouts: true, ..none }
        );
        assert_eq!(mark("trusted.overlay.redirect", "/a", Namespace::Trusted), Marks { redirect: true, ..none });
        assert_eq!(mark("user.overlay.metacopy", "", Namespace::User), Marks { metacopy: true, ..none });
        assert_eq!(mark("user.overlay.opaque", "y", Namespace::Trusted), none);
        assert_eq!(mark("trusted.overlay.overlay.opaque", "y", Namespace::Trusted), none);
    }
}
