//! Extended attributes of any file, symbolic links included.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use rustix::io::Errno;

use crate::sys::dir::Node;

/// The kernel's own limit, of a value and of a list of names: `XATTR_SIZE_MAX`, `XATTR_LIST_MAX`.
const LIMIT: usize = 64 << 10;

/// Names and values of all attributes of `node`, sorted by name; none where the file system knows no attributes.
///
/// A name that goes away between being listed and being read is left out.
pub fn all(node: &Node) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = node.proc_path();
    let length = match rustix::fs::listxattr_query(&*path) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(length) => length,
        Err(error) => return Err(error.into()),
    };
    let mut list = vec![0; length];
    let length = match rustix::fs::listxattr(&*path, &mut list[..]) {
        Err(Errno::RANGE) => {
            list.resize(LIMIT, 0);
            rustix::fs::listxattr(&*path, &mut list[..])?
        }
        done => done?,
    };
    let mut found = Vec::new();
    for name in list[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if let Some(value) = one(&path, name)? {
            found.push((name.to_vec(), value));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The value of attribute `name` of `node`, if it has one.
pub fn get(node: &Node, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    one(&node.proc_path(), name)
}

fn one(path: &str, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let name = OsStr::from_bytes(name);
    let mut value = vec![0; 256];
    loop {
        match rustix::fs::getxattr(path, name, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                return Ok(Some(value));
            }
            Err(Errno::RANGE) if value.len() < LIMIT => value.resize(LIMIT, 0),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::dir::Dir;
    use rustix::fs::{XattrFlags, lsetxattr};

    #[test]
    fn values_are_bytes_and_links_have_their_own() {
        let temp = tempfile::tempdir().unwrap();
        let (file, link) = (temp.path().join("f"), temp.path().join("l"));
        std::fs::write(&file, b"").unwrap();
        std::os::unix::fs::symlink("f", &link).unwrap();
        let long = vec![b'\n'; 2000];
        lsetxattr(&file, "user.b", &long, XattrFlags::empty()).unwrap();
        lsetxattr(&file, "user.a", b"\0\xff\n", XattrFlags::empty()).unwrap();
        lsetxattr(&link, "trusted.link", b"", XattrFlags::empty()).unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let file = dir.open_node(b"f").unwrap();
        let pair = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
        assert_eq!(all(&file).unwrap(), [pair("user.a", b"\0\xff\n"), pair("user.b", &long)]);
        assert_eq!(all(&dir.open_node(b"l").unwrap()).unwrap(), [pair("trusted.link", b"")]);
        assert_eq!(get(&file, b"user.none").unwrap(), None);
    }
}
