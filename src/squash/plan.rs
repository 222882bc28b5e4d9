//! [`Plan`]: what belongs into one layer that stands for several, and in which order; pure.
//!
//! It is the difference between two merged trees: that of all layers, and that of those which it will be laid on. A name
//! that both have from the same entry of the same layer is left out; a name that only the lower has is a whiteout; all else is an
//! entry. If one name of a file is, all are: what unpacks a layer need not find a link's target in the layers below.
//!
//! The order is that of every layer of ours (`capture/layout.rs`), but that the files come as they are in the layers that
//! they are taken from, so that these are read from beginning to end and their frames can be used as they are.

use std::collections::HashMap;

use crate::view::{Kind, Tree};

/// The most paths, in bytes.
pub(crate) const MOST_TEXT: usize = 512 << 20;

/// See the head of this file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Directories in the place of something else below, and what is in these: before all files.
    pub(crate) early: Vec<Node>,
    /// For each layer its regular files, in the order of their contents.
    pub(crate) files: Vec<Vec<Node>>,
    /// All else, parents before what is in them.
    pub(crate) rest: Vec<Node>,
}

/// An entry of the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) path: Box<[u8]>,
    pub(crate) what: What,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// That inode of the merged tree.
    Inode(u32),
    /// One more name of it, beside this one.
    Link(u32, Box<[u8]>),
    /// Nothing.
    Whiteout,
}

/// Whether the file of a layer whose content begins there has this path in its headers.
pub(crate) type IsNamed<'a> = &'a dyn Fn(u32, u64, &[u8]) -> bool;

impl Plan {
    /// The difference between `all`, which has the inodes of so many `layers`, and `base`. None if there is too much of it.
    pub(crate) fn of(all: &Tree, base: Option<&Tree>, layers: usize, is_named: IsNamed<'_>) -> Option<Plan> {
        let groups = groups(all, base, is_named);
        let mut gathered = Gathered { nodes: Vec::new(), open: Vec::new(), text: 0 };
        walk(all, base, &mut |step| gathered.step(all, &groups, step));
        if gathered.text > MOST_TEXT {
            return None;
        }
        Some(gathered.sort(all, layers))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.early.is_empty() && self.rest.is_empty() && self.files.iter().all(Vec::is_empty)
    }
}

/// The names of one inode.
struct Group {
    /// The one that has the content.
    first: Box<[u8]>,
    /// Whether its headers can be used as they are.
    is_named: bool,
    is_wanted: bool,
}

/// The inodes with several names.
fn groups(all: &Tree, base: Option<&Tree>, is_named: IsNamed<'_>) -> HashMap<u32, Group> {
    let mut groups: HashMap<u32, Group> = HashMap::new();
    walk(all, base, &mut |step| {
        let Step { path, inode: Some(inode), is_changed, .. } = step else { return };
        let Some(found) = all.inode(inode).filter(|found| found.kind != Kind::Directory && found.nlink > 1) else {
            return;
        };
        let (layer, _) = found.origin;
        let group =
            groups.entry(inode).or_insert_with(|| Group { first: path.into(), is_named: false, is_wanted: false });
        group.is_wanted |= is_changed;
        // Any name of a file will do, since files come before links. Of other things the first comes first.
        if found.kind == Kind::File && !group.is_named && is_named(layer, found.place, path) {
            (group.first, group.is_named) = (path.into(), true);
        }
    });
    groups
}

/// One name of either tree.
struct Step<'a> {
    path: &'a [u8],
    /// How many directories are above it.
    depth: usize,
    /// None if it is only in the lower tree.
    inode: Option<u32>,
    /// It is not as in the lower tree.
    is_changed: bool,
    /// A directory where the lower tree has something else, or in such a one.
    replaces: bool,
    /// A directory that nobody has told of, here or below: it comes with what is in it.
    is_implied: bool,
}

struct Open {
    all: u32,
    base: Option<u32>,
    next: usize,
    length: usize,
    replaces: bool,
}

/// Every name of both trees, directories before what is in them, in each whiteouts before names; the root first.
fn walk(all: &Tree, base: Option<&Tree>, see: &mut dyn FnMut(Step<'_>)) {
    let origin = |tree: &Tree, inode: u32| tree.inode(inode).map(|inode| inode.origin);
    let is_directory = |tree: &Tree, inode: u32| tree.inode(inode).is_some_and(|inode| inode.kind == Kind::Directory);
    let is_implied = |tree: &Tree, inode: u32| tree.inode(inode).is_some_and(|inode| inode.implied);
    let mut path: Vec<u8> = Vec::new();
    let is_changed = base.is_none_or(|base| origin(base, 0) != origin(all, 0));
    let implied = is_implied(all, 0) && base.is_none_or(|base| is_implied(base, 0));
    see(Step { path: &path, depth: 0, inode: Some(0), is_changed, replaces: false, is_implied: implied });
    let root = Open { all: 0, base: base.map(|_| 0), next: 0, length: 0, replaces: false };
    hide(all, base, &root, 1, &mut path, see);
    let mut open = vec![root];
    while let Some(top) = open.last_mut() {
        path.truncate(top.length);
        let Some(name) = all.names_of(top.all).get(top.next) else {
            open.pop();
            continue;
        };
        top.next += 1;
        let (name, inode) = (all.name(name), name.inode);
        append(&mut path, name);
        let below = base.zip(top.base).and_then(|(base, directory)| Some((base, base.child(directory, name)?)));
        let is_changed = below.is_none_or(|(base, below)| origin(base, below) != origin(all, inode));
        if !is_directory(all, inode) {
            let depth = open.len();
            see(Step { path: &path, depth, inode: Some(inode), is_changed, replaces: false, is_implied: false });
            continue;
        }
        let same = below.filter(|(base, below)| is_directory(base, *below));
        let replaces = top.replaces || (below.is_some() && same.is_none());
        let is_implied =
            is_implied(all, inode) && !replaces && same.is_none_or(|(base, below)| is_implied(base, below));
        let same = same.map(|(_, below)| below);
        let depth = open.len();
        see(Step { path: &path, depth, inode: Some(inode), is_changed, replaces, is_implied });
        let directory = Open { all: inode, base: same, next: 0, length: path.len(), replaces };
        hide(all, base, &directory, depth + 1, &mut path, see);
        open.push(directory);
    }
}

/// The names that a directory of the lower tree has and that of the upper has not.
fn hide(
    all: &Tree,
    base: Option<&Tree>,
    directory: &Open,
    depth: usize,
    path: &mut Vec<u8>,
    see: &mut dyn FnMut(Step<'_>),
) {
    let Some((base, below)) = base.zip(directory.base) else { return };
    for (name, _) in base.children(below) {
        if all.child(directory.all, name).is_none() {
            append(path, name);
            see(Step { path, depth, inode: None, is_changed: true, replaces: false, is_implied: false });
            path.truncate(directory.length);
        }
    }
}

fn append(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// Names in the order of the walk, with those directories that may turn out to be needed.
struct Gathered {
    nodes: Vec<Found>,
    /// The directories above what comes next, the root first.
    open: Vec<usize>,
    text: usize,
}

struct Found {
    node: Node,
    is_wanted: bool,
    is_early: bool,
    is_implied: bool,
}

impl Gathered {
    fn step(&mut self, all: &Tree, groups: &HashMap<u32, Group>, step: Step<'_>) {
        let Step { path, depth, inode, is_changed, replaces, is_implied } = step;
        self.open.truncate(depth);
        let group = inode.and_then(|inode| groups.get(&inode));
        let found = inode.and_then(|inode| all.inode(inode));
        let is_directory = found.is_some_and(|found| found.kind == Kind::Directory);
        let is_wanted = group.map_or(is_changed, |group| group.is_wanted) && !is_implied;
        if self.text > MOST_TEXT || !(is_wanted || is_directory) {
            return;
        }
        let path: Box<[u8]> = if is_implied { Box::default() } else { path.into() };
        let what = match (inode, group) {
            (None, _) => What::Whiteout,
            (Some(inode), Some(group)) if group.first != path => What::Link(inode, group.first.clone()),
            (Some(inode), _) => What::Inode(inode),
        };
        self.text += path.len() + if let What::Link(_, to) = &what { to.len() } else { 0 };
        if is_wanted {
            self.want_above();
        }
        if is_directory {
            self.open.push(self.nodes.len());
        }
        self.nodes.push(Found { node: Node { path, what }, is_wanted, is_early: replaces, is_implied });
    }

    /// The directories above what is wanted are, too.
    fn want_above(&mut self) {
        for at in self.open.iter().rev() {
            if std::mem::replace(&mut self.nodes[*at].is_wanted, true) {
                break; // and so are all above it
            }
        }
    }

    fn sort(self, all: &Tree, layers: usize) -> Plan {
        let mut plan = Plan { files: (0..layers).map(|_| Vec::new()).collect(), ..Plan::default() };
        let wanted = self.nodes.into_iter().filter(|found| found.is_wanted && !found.is_implied);
        for Found { node, is_early, .. } in wanted {
            let inode = match node.what {
                What::Inode(inode) => all.inode(inode),
                What::Link(..) | What::Whiteout => None,
            };
            match inode {
                Some(inode) if inode.kind == Kind::File => plan.files[inode.origin.0 as usize].push(node),
                _ if is_early => plan.early.push(node),
                _ => plan.rest.push(node),
            }
        }
        let place = |node: &Node| match node.what {
            What::Inode(inode) => all.inode(inode).map(|inode| inode.place),
            What::Link(..) | What::Whiteout => None,
        };
        plan.files.iter_mut().for_each(|files| files.sort_by_key(place));
        plan
    }
}

#[cfg(test)]
mod tests;
