//! A tree becomes files. What is in it was held against all rules that unpackers have when it was read; here nothing is made
//! outside of one directory all the same.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use crate::progress::Progress;
use crate::restore::Error;
use crate::sys::ground::{Attributes, Ground, Special};
use crate::view::{Inode, Kind, Tree, View, Views, read_tar};

/// How much of a file is copied between two looks at the progress.
const CHUNK: usize = 1 << 20;

/// Attributes that an overlay would obey, whoever set them.
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Make all that is in an image below `ground`.
pub(super) fn image(views: &Views, view: &View, what: &str, ground: &Ground, progress: &Progress) -> Result<(), Error> {
    let mut copy = |_: &Inode, inode: u32, out: &mut File| Ok(views.copy(view, inode, out)?);
    tree(view.tree(), what, ground, progress, &mut copy)
}

/// Put all that is in a tar over what is below `ground`, as podman does with the files of a checkpoint.
pub(super) fn tar(tar: &File, what: &str, ground: &Ground, progress: &Progress) -> Result<(), Error> {
    let entries = read_tar(tar).map_err(|reason| Error::Malformed(format!("{what}: {reason}")))?;
    let mut copy = |inode: &Inode, _: u32, out: &mut File| {
        let mut chunk = vec![0; CHUNK.min(usize::try_from(inode.size).unwrap_or(CHUNK))];
        let (mut at, end) = (inode.place(), inode.place().saturating_add(inode.size));
        while at < end {
            progress.check()?;
            let piece = &mut chunk[..usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK)];
            if let Err(error) = tar.read_exact_at(piece, at).and_then(|()| out.write_all(piece)) {
                return Ok(Err(error));
            }
            at += piece.len() as u64;
        }
        Ok(Ok(()))
    };
    tree(&entries, what, ground, progress, &mut copy)
}

type Copy<'a> = dyn FnMut(&Inode, u32, &mut File) -> Result<io::Result<()>, Error> + 'a;

fn tree(tree: &Tree, what: &str, ground: &Ground, progress: &Progress, copy: &mut Copy<'_>) -> Result<(), Error> {
    let failed = |path: &[u8]| {
        let path = String::from_utf8_lossy(path).into_owned();
        move |source| Error::Unpack { what: what.to_owned(), path, source }
    };
    // The first name of files that have several.
    let mut names: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut directories: Vec<(Vec<u8>, u32)> = vec![(Vec::new(), 0)];
    let mut left_out = 0;
    for (path, number) in tree.walk() {
        progress.check()?;
        let Some(inode) = tree.inode(number) else { continue };
        if let Some(first) = names.get(&number) {
            ground.link(&path, first).map_err(failed(&path))?;
            continue;
        }
        match inode.kind {
            Kind::Directory => {
                ground.directory(&path).map_err(failed(&path))?;
                directories.push((path, number));
                continue;
            }
            Kind::File => {
                let mut file = ground.file(&path).map_err(failed(&path))?;
                copy(inode, number, &mut file)?.map_err(failed(&path))?;
                progress.add_bytes(inode.size);
            }
            Kind::Symlink => ground.symlink(&path, tree.target(number)).map_err(failed(&path))?,
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                let (major, minor) = inode.device;
                let special = match inode.kind {
                    Kind::CharDevice => Special::CharDevice(major, minor),
                    Kind::BlockDevice => Special::BlockDevice(major, minor),
                    _ => Special::Fifo,
                };
                ground.special(&path, special).map_err(failed(&path))?;
            }
            Kind::Link => {
                ground.link(&path, tree.target(number)).map_err(failed(&path))?;
                continue;
            }
            Kind::Whiteout | Kind::Opaque => continue,
        }
        if inode.nlink > 1 {
            names.insert(number, path.clone());
        }
        left_out += ground.set(&path, &attributes(tree, number, inode)).map_err(failed(&path))?;
    }
    // What is made in a directory changes its time.
    for (path, number) in directories.iter().rev() {
        if let Some(inode) = tree.inode(*number).filter(|inode| !inode.is_implied()) {
            left_out += ground.set(path, &attributes(tree, *number, inode)).map_err(failed(path))?;
        }
    }
    if left_out > 0 {
        progress
            .log(format!("{what}: {left_out} extended attributes that the file system does not take were left out"));
    }
    Ok(())
}

fn attributes(tree: &Tree, number: u32, inode: &Inode) -> Attributes {
    let is_overlay = |name: &[u8]| OVERLAY.iter().any(|prefix| name.starts_with(prefix));
    let xattrs = tree.xattrs(number).filter(|(name, _)| !is_overlay(name));
    Attributes {
        mode: (inode.kind != Kind::Symlink).then_some(inode.mode),
        uid: inode.uid,
        gid: inode.gid,
        mtime: inode.mtime,
        xattrs: xattrs.map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    fn packed(make: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> File {
        let mut builder = tar::Builder::new(Vec::new());
        make(&mut builder);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&builder.into_inner().unwrap()).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        file
    }

    fn add(builder: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, target: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o640);
        header.set_mtime(12345);
        header.set_size(content.len() as u64);
        let name = &mut header.as_gnu_mut().unwrap().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        if !target.is_empty() {
            header.set_link_name(target).unwrap();
        }
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }

    #[test]
    fn a_tar_goes_over_what_is_there() {
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("etc/old")).unwrap();
        fs::write(top.path().join("etc/kept"), "kept").unwrap();
        let mode = fs::metadata(top.path().join("etc")).unwrap().mode();
        let long = vec![7; CHUNK + 3];
        let archive = packed(|tar| {
            // Nobody tells of etc itself, so that it stays what it is.
            add(tar, "etc/old", Regular, "", b"new");
            add(tar, "etc/long", Regular, "", &long);
            add(tar, "etc/again", Link, "etc/long", b"");
            add(tar, "etc/kept-too", Link, "etc/kept", b"");
            add(tar, "dir", Directory, "", b"");
            add(tar, "dir/link", Symlink, "/etc/passwd", b"");
        });
        let ground = Ground::open(top.path()).unwrap();
        tar(&archive, "a tar", &ground, &Progress::new()).unwrap();
        let read = |path: &str| fs::read(top.path().join(path)).unwrap();
        assert_eq!((read("etc/old"), read("etc/kept")), (b"new".to_vec(), b"kept".to_vec()));
        assert!(read("etc/again") == long);
        let stat = |path: &str| fs::symlink_metadata(top.path().join(path)).unwrap();
        assert_eq!(stat("etc/again").ino(), stat("etc/long").ino());
        assert_eq!(stat("etc").mode(), mode);
        assert_eq!((stat("dir").mode() & 0o7777, stat("dir").mtime()), (0o640, 12345));
        assert_eq!(fs::read_link(top.path().join("dir/link")).unwrap().to_str(), Some("/etc/passwd"));
    }

    #[test]
    fn nothing_is_made_outside() {
        use tar::EntryType::{Regular, Symlink};
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("root");
        fs::create_dir(&root).unwrap();
        std::os::unix::fs::symlink(top.path(), root.join("out")).unwrap();
        let ground = Ground::open(&root).unwrap();
        // A link that was there, one of the tar's own, and a path that says it itself.
        let hostile: [&[(&str, &str)]; 3] = [&[("out/made", "")], &[("l", ".."), ("l/made", "")], &[("../made", "")]];
        for entries in hostile {
            let archive = packed(|tar| {
                for (path, target) in entries {
                    add(tar, path, if target.is_empty() { Regular } else { Symlink }, target, b"");
                }
            });
            let _ = tar(&archive, "a tar", &ground, &Progress::new());
            assert!(!top.path().join("made").exists(), "{entries:?}");
        }
        let cut = packed(|tar| add(tar, "f", Regular, "", &[1; 2000]));
        cut.set_len(1000).unwrap();
        assert!(tar(&cut, "a tar", &ground, &Progress::new()).is_err());
    }
}
