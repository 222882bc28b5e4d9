//! The text of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)): where file systems are mounted, and what an overlay is made of.
//!
//! Pure: text in, values out. Written by hand because a map of options loses what an overlay needs: `lowerdir+`
//! stands there once for each layer, in order.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One line: a file system mounted somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `st_dev` of its files, major and minor.
    pub device: (u32, u32),
    /// Which directory of the file system is mounted; `/` unless it is a bind mount of a part.
    pub root: PathBuf,
    /// Where it is mounted, as the process whose file this is sees it.
    pub mount_point: PathBuf,
    /// `overlay`, `cgroup2`, …
    pub file_system: String,
    /// The options of the file system (not of the mount), escapes undone, in order.
    pub options: Vec<Vec<u8>>,
}

/// What an overlay mount is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayOptions {
    /// The read-only layers, top first, without those that hold data only and therefore no names.
    pub lower: Vec<PathBuf>,
    /// The layer that is written to.
    pub upper: PathBuf,
    /// Whether the overlay's own attributes are `user.overlay.*` (mount option `userxattr`).
    pub user_xattrs: bool,
    /// The other options as the kernel shows them, such as `redirect_dir=on` and `metacopy=on`.
    pub rest: Vec<String>,
}

/// The mounts of a mountinfo file, in its order: of two on one place, the later covers the earlier. Lines that are not
/// of the form are left out.
pub fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = fields.nth(2)?;
    let root = path(fields.next()?);
    let mount_point = path(fields.next()?);
    // After the mount's options come any number of optional fields, and then a single hyphen.
    fields.find(|field| *field == b"-")?;
    let file_system = String::from_utf8(fields.next()?.to_vec()).ok()?;
    let options = fields.nth(1)?.split(|&byte| byte == b',').map(unescape_octal).collect();
    let (major, minor) = std::str::from_utf8(device).ok()?.split_once(':')?;
    Some(Mount { device: (major.parse().ok()?, minor.parse().ok()?), root, mount_point, file_system, options })
}

/// The last mount at `mount_point`: what is seen there.
pub fn find<'a>(mounts: &'a [Mount], mount_point: &Path) -> Option<&'a Mount> {
    mounts.iter().rev().find(|mount| mount.mount_point == mount_point)
}

/// Which directory of which file system `path` is: what a bind mount of `path` would have as `device` and `root`.
/// `path` must be absolute and hold no symbolic link.
pub fn locate(mounts: &[Mount], path: &Path) -> Option<((u32, u32), PathBuf)> {
    let covering = mounts.iter().filter(|mount| path.starts_with(&mount.mount_point));
    // Of those equally deep, max_by_key returns the last.
    let mount = covering.max_by_key(|mount| mount.mount_point.components().count())?;
    let rest = path.strip_prefix(&mount.mount_point).ok()?;
    let root = if rest.as_os_str().is_empty() { mount.root.clone() } else { mount.root.join(rest) };
    Some((mount.device, root))
}

impl Mount {
    /// What this overlay is made of. `None` if it is no overlay, only a part of one, has no upper layer, or names its
    /// layers relative to a directory that is no longer known.
    pub fn overlay(&self) -> Option<OverlayOptions> {
        if self.file_system != "overlay" || self.root != Path::new("/") {
            return None;
        }
        let (mut lower, mut upper, mut user_xattrs, mut rest) = (Vec::new(), None, false, Vec::new());
        for option in &self.options {
            match split_option(option) {
                (b"lowerdir", Some(value)) => lower.extend(split_lower(value)),
                (b"lowerdir+", Some(value)) => lower.push(PathBuf::from(OsString::from_vec(value.to_vec()))),
                (b"upperdir", Some(value)) => upper = Some(unescape_backslash(value)),
                (b"userxattr", None) => user_xattrs = true,
                (b"workdir" | b"datadir+", Some(_)) => {}
                _ => rest.push(String::from_utf8_lossy(option).into_owned()),
            }
        }
        let upper = upper?;
        let absolute = upper.is_absolute() && lower.iter().all(|path| path.is_absolute());
        (absolute && !lower.is_empty()).then_some(OverlayOptions { lower, upper, user_xattrs, rest })
    }
}

fn split_option(option: &[u8]) -> (&[u8], Option<&[u8]>) {
    match option.iter().position(|&byte| byte == b'=') {
        Some(at) => (&option[..at], Some(&option[at + 1..])),
        None => (option, None),
    }
}

/// Splits a `lowerdir` at its colons, top first. A backslash takes the meaning from the byte after it, and after two
/// colons stand layers that hold only data (kernel: Documentation/filesystems/overlayfs.rst, "Multiple lower layers" and
/// "Data-only lower layers").
fn split_lower(value: &[u8]) -> Vec<PathBuf> {
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    while at < value.len() {
        match value[at] {
            b'\\' => at += 1,
            b':' => {
                parts.push(&value[start..at]);
                start = at + 1;
            }
            _ => {}
        }
        at += 1;
    }
    parts.push(&value[start..]);
    parts.into_iter().take_while(|part| !part.is_empty()).map(unescape_backslash).collect()
}

fn unescape_backslash(value: &[u8]) -> PathBuf {
    let (mut bytes, mut input) = (Vec::with_capacity(value.len()), value.iter());
    while let Some(&byte) = input.next() {
        bytes.push(if byte == b'\\' { input.next().copied().unwrap_or(b'\\') } else { byte });
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape_octal(field)))
}

/// The kernel writes a space, a comma and their like as a backslash and three octal digits.
fn unescape_octal(field: &[u8]) -> Vec<u8> {
    let (mut bytes, mut at) = (Vec::with_capacity(field.len()), 0);
    while at < field.len() {
        let escape = field.get(at + 1..at + 4).filter(|_| field[at] == b'\\').and_then(octal);
        bytes.push(escape.unwrap_or(field[at]));
        at += if escape.is_some() { 4 } else { 1 };
    }
    bytes
}

fn octal(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0u8, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(digit - b'0'),
        _ => None,
    })
}

/// Where a cgroup hierarchy is mounted, and which of its cgroups that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    mount_point: PathBuf,
    root: PathBuf,
}

impl Hierarchy {
    /// The v1 hierarchy that has the freezer.
    pub fn freezer(mounts: &[Mount]) -> Option<Hierarchy> {
        Hierarchy::find(mounts, |mount| {
            mount.file_system == "cgroup" && mount.options.iter().any(|option| option == b"freezer")
        })
    }

    /// The v2 hierarchy: the only one, or the one beside v1 that has no controllers (hybrid).
    pub fn unified(mounts: &[Mount]) -> Option<Hierarchy> {
        Hierarchy::find(mounts, |mount| mount.file_system == "cgroup2")
    }

    fn find(mounts: &[Mount], wanted: impl Fn(&Mount) -> bool) -> Option<Hierarchy> {
        let mount = mounts.iter().find(|mount| wanted(mount))?;
        Some(Hierarchy { mount_point: mount.mount_point.clone(), root: mount.root.clone() })
    }

    /// The directory in which the hierarchy is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The directory of the cgroup that `/proc/PID/cgroup` calls `cgroup`, if it is below the mounted one.
    pub fn directory(&self, cgroup: &Path) -> Option<PathBuf> {
        cgroup.strip_prefix(&self.root).ok().map(|rest| self.mount_point.join(rest))
    }
}

/// The cgroups of a process from the text of `/proc/PID/cgroup` (cgroups(7)): in the v1 hierarchy that has the freezer,
/// and in the v2 hierarchy.
pub fn parse_cgroups(text: &[u8]) -> (Option<PathBuf>, Option<PathBuf>) {
    let (mut freezer, mut unified) = (None, None);
    for line in text.split(|&byte| byte == b'\n') {
        let mut fields = line.splitn(3, |&byte| byte == b':');
        let (Some(number), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let path = || Some(PathBuf::from(std::ffi::OsStr::from_bytes(path)));
        if number == b"0" && controllers.is_empty() {
            unified = path();
        } else if controllers.split(|&byte| byte == b',').any(|controller| controller == b"freezer") {
            freezer = path();
        }
    }
    (freezer, unified)
}

#[cfg(test)]
mod tests;
