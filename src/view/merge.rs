//! The layers of an image become one tree; pure.
//!
//! As overlayfs merges: what an upper layer has of a name is what there is; directories of several layers are one, with the
//! attributes of the uppermost that an entry tells of; a whiteout hides a name of the layers below it, an opaque directory
//! all that they have in it. A hard link to a file of a layer below, which only some programs write, is one more name for
//! that file.

use std::collections::{HashMap, VecDeque};

use crate::view::layer::{WHITEOUT, carry};
use crate::view::tree::{Inode, Kind, Name, Tree};

/// Merge `layers`, bottom first.
///
/// Errors: why no unpacker could make the tree.
pub(crate) fn merge(layers: &[&Tree]) -> Result<Tree, String> {
    let links = layers.iter().rposition(|layer| layer.inodes.iter().any(|inode| inode.kind == Kind::Link));
    let targets = match links {
        // Only these need the trees in between.
        Some(last) => find_targets(&layers[..=last])?,
        None => HashMap::new(),
    };
    merge_with(layers, &targets)
}

/// Inode of a layer → inode of a layer below that it is a name of.
type Targets = HashMap<(u32, u32), (u32, u32)>;

fn find_targets(layers: &[&Tree]) -> Result<Targets, String> {
    let mut targets = Targets::new();
    for (at, layer) in layers.iter().enumerate() {
        let links = || layer.inodes.iter().zip(0u32..).filter(|(inode, _)| inode.kind == Kind::Link);
        if links().next().is_none() {
            continue;
        }
        let below = if at == 0 { Tree::default() } else { merge_with(&layers[..at], &targets)? };
        for (_, link) in links() {
            let path = layer.target(link);
            let found = below.resolve(path).and_then(|inode| below.inode(inode));
            match found {
                Some(found) if found.kind != Kind::Directory => {
                    targets.insert((narrow(at)?, link), found.origin);
                }
                _ => {
                    let path = path[..path.len().min(200)].escape_ascii();
                    return Err(format!(
                        "layer {at} has a hard link to \"{path}\", which is no file of the layers below"
                    ));
                }
            }
        }
    }
    Ok(targets)
}

fn narrow(number: usize) -> Result<u32, String> {
    u32::try_from(number).map_err(|_| "there are too many layers".to_owned())
}

/// A directory of the result that is still to be filled, and the directories it consists of, uppermost first.
struct Pending {
    inode: u32,
    parts: Vec<(u32, u32)>,
}

fn merge_with(layers: &[&Tree], targets: &Targets) -> Result<Tree, String> {
    let too_much = || "its layers together have more names and attributes than can be kept".to_owned();
    let mut merged = Merged { layers, tree: Tree::default(), known: HashMap::new() };
    let all: Vec<(u32, u32)> = (0..narrow(layers.len())?).rev().map(|layer| (layer, 0)).collect();
    if all.is_empty() {
        merged.tree.inodes.push(Inode::implied_directory());
        return Ok(merged.tree);
    }
    let parts = merged.visible(&all);
    let root = merged.directory(&parts).ok_or_else(too_much)?;
    let mut queue = VecDeque::from([Pending { inode: root, parts }]);
    let mut candidates: Vec<(&[u8], u32, bool, u32)> = Vec::new();
    while let Some(Pending { inode, parts }) = queue.pop_front() {
        candidates.clear();
        for (height, (layer, directory)) in (0u32..).zip(&parts) {
            let tree = layers[*layer as usize];
            for (name, child) in tree.children(*directory) {
                match tree.inodes[child as usize].kind {
                    Kind::Opaque => {}
                    Kind::Whiteout => candidates.push((&name[WHITEOUT.len()..], height, true, child)),
                    _ => candidates.push((name, height, false, child)),
                }
            }
        }
        // By name, then from above; a layer's own file comes before its whiteout, which is for the layers below.
        candidates.sort_unstable();
        merged.tree.inodes[inode as usize].place = merged.tree.names.len() as u64;
        for same in candidates.chunk_by(|a, b| a.0 == b.0) {
            let (name, height, is_whiteout, top) = same[0];
            if is_whiteout {
                continue;
            }
            let layer = parts[height as usize].0;
            let top_kind = layers[layer as usize].inodes[top as usize].kind;
            let child = if top_kind == Kind::Directory {
                let below = same.iter().take_while(|candidate| {
                    let (layer, _) = parts[candidate.1 as usize];
                    !candidate.2 && layers[layer as usize].inodes[candidate.3 as usize].kind == Kind::Directory
                });
                let directories: Vec<(u32, u32)> =
                    below.map(|candidate| (parts[candidate.1 as usize].0, candidate.3)).collect();
                let directories = merged.visible(&directories);
                let number = merged.directory(&directories).ok_or_else(too_much)?;
                merged.tree.inodes[inode as usize].nlink += 1;
                queue.push_back(Pending { inode: number, parts: directories });
                number
            } else {
                let origin = targets.get(&(layer, top)).copied().unwrap_or((layer, top));
                merged.file(origin).ok_or_else(too_much)?
            };
            let span = merged.tree.add_text(name).ok_or_else(too_much)?;
            let length = u16::try_from(span.length).map_err(|_| too_much())?;
            merged.tree.names.push(Name { inode: child, at: span.at, length });
            merged.tree.inodes[inode as usize].names += 1;
        }
    }
    Ok(merged.tree)
}

struct Merged<'layers> {
    layers: &'layers [&'layers Tree],
    tree: Tree,
    /// Files that have a name already.
    known: HashMap<(u32, u32), u32>,
}

impl Merged<'_> {
    /// Down to the first opaque directory.
    fn visible(&self, directories: &[(u32, u32)]) -> Vec<(u32, u32)> {
        let is_opaque = |(layer, inode): &(u32, u32)| self.layers[*layer as usize].inodes[*inode as usize].opaque;
        let count = directories.iter().position(is_opaque).map_or(directories.len(), |at| at + 1);
        directories[..count].to_vec()
    }

    /// A directory with the attributes of the uppermost part that has some of its own.
    fn directory(&mut self, parts: &[(u32, u32)]) -> Option<u32> {
        let is_told = |(layer, inode): &&(u32, u32)| !self.layers[*layer as usize].inodes[*inode as usize].implied;
        let (layer, inode) = *parts.iter().find(is_told).or(parts.first())?;
        let number = carry(&mut self.tree, self.layers[layer as usize], inode)?;
        let directory = &mut self.tree.inodes[number as usize];
        directory.origin = (layer, inode);
        directory.opaque = false;
        Some(number)
    }

    fn file(&mut self, origin: (u32, u32)) -> Option<u32> {
        if let Some(number) = self.known.get(&origin) {
            self.tree.inodes[*number as usize].nlink += 1;
            return Some(*number);
        }
        let (layer, inode) = origin;
        let number = carry(&mut self.tree, self.layers[layer as usize], inode)?;
        self.tree.inodes[number as usize].origin = origin;
        self.known.insert(origin, number);
        Some(number)
    }
}

#[cfg(test)]
mod tests;
