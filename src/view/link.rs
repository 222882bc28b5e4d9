//! Symbolic links of a tree, shown so that they do not lead out of it; pure.

use crate::view::tree::{Kind, LINKS, Tree, components};

/// The directory that each inode is in; with several names, the one nearest to the root.
pub(crate) fn parents(tree: &Tree) -> Vec<u32> {
    let mut parents = vec![u32::MAX; tree.len()];
    if let Some(root) = parents.first_mut() {
        *root = 0;
    }
    // Directories come before what is in them, and nearer ones before farther ones.
    for (directory, _) in (0u32..).zip(&tree.inodes) {
        for name in tree.names_of(directory) {
            if let Some(parent) = parents.get_mut(name.inode as usize).filter(|parent| **parent == u32::MAX) {
                *parent = directory;
            }
        }
    }
    parents
}

/// The target of `link` for a reader whose root is not the tree's: where a process with the root there would arrive, as a
/// relative path that goes through no other link. A target that means the same either way stays as it is.
pub(crate) fn target_in_root(tree: &Tree, parents: &[u32], link: u32) -> Vec<u8> {
    let target = tree.target(link);
    let start = path_to(tree, parents, parents.get(link as usize).copied().unwrap_or(0));
    let mut at: Vec<(Option<u32>, &[u8])> = start.clone();
    let mut is_changed = target.starts_with(b"/");
    if is_changed {
        at.clear();
    }
    let mut rest: Vec<&[u8]> = components(target).rev().collect();
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == b".." {
            is_changed |= at.pop().is_none();
            continue;
        }
        let directory = at.last().map_or(Some(0), |(inode, _)| *inode);
        let found = directory.and_then(|directory| tree.child(directory, name));
        let is_link = found.and_then(|found| tree.inode(found)).is_some_and(|inode| inode.kind == Kind::Symlink);
        let Some(found) = found.filter(|_| is_link) else {
            at.push((found, name));
            continue;
        };
        is_changed = true;
        links += 1;
        if links > LINKS {
            // Nowhere: a link to itself says so.
            return own_name(tree, parents, link).to_vec();
        }
        let target = tree.target(found);
        if target.starts_with(b"/") {
            at.clear();
        }
        rest.extend(components(target).rev());
    }
    if !is_changed {
        return target.to_vec();
    }
    let names = start.iter().map(|_| &b".."[..]).chain(at.iter().map(|(_, name)| *name));
    let path = names.collect::<Vec<_>>().join(&b"/"[..]);
    if path.is_empty() { b".".to_vec() } else { path }
}

/// The directories from the root, without it, to `directory`, with their names.
fn path_to<'tree>(tree: &'tree Tree, parents: &[u32], mut directory: u32) -> Vec<(Option<u32>, &'tree [u8])> {
    let mut path = Vec::new();
    while directory != 0 && path.len() < tree.len() {
        path.push((Some(directory), own_name(tree, parents, directory)));
        directory = parents.get(directory as usize).copied().unwrap_or(0);
    }
    path.reverse();
    path
}

fn own_name<'tree>(tree: &'tree Tree, parents: &[u32], inode: u32) -> &'tree [u8] {
    let parent = parents.get(inode as usize).copied().unwrap_or(0);
    let names = tree.names_of(parent);
    names.iter().find(|name| name.inode == inode).map_or(b".", |name| tree.name(name))
}
