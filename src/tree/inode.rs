//! Node ↔ number, with the kernel's lookup counts; pure.

use std::collections::HashMap;

use crate::tree::node::Node;

/// FUSE's number of the root.
pub(super) const ROOT: u64 = 1;

/// The nodes that the kernel knows. A node keeps its number for as long as the kernel holds a lookup of it, and no
/// number is given out twice.
#[derive(Debug)]
pub(super) struct Inodes {
    by_number: HashMap<u64, (Node, u64)>,
    by_node: HashMap<Node, u64>,
    next: u64,
}

impl Inodes {
    pub(super) fn new() -> Inodes {
        let by_number = [(ROOT, (Node::Root, 1))].into();
        Inodes { by_number, by_node: [(Node::Root, ROOT)].into(), next: ROOT + 1 }
    }

    pub(super) fn node(&self, ino: u64) -> Option<&Node> {
        self.by_number.get(&ino).map(|(node, _)| node)
    }

    /// Count one lookup.
    pub(super) fn look_up(&mut self, node: Node) -> u64 {
        if let Some(&ino) = self.by_node.get(&node) {
            if let Some((_, lookups)) = self.by_number.get_mut(&ino) {
                *lookups += 1;
            }
            return ino;
        }
        let ino = self.next;
        self.next += 1;
        self.by_node.insert(node.clone(), ino);
        self.by_number.insert(ino, (node, 1));
        ino
    }

    /// The number as a hint for a listing: the one it has, or one that no node will ever have.
    pub(super) fn hint(&self, node: &Node) -> u64 {
        self.by_node.get(node).copied().unwrap_or(u64::MAX)
    }

    /// The kernel forgets `lookups` of `ino`.
    pub(super) fn forget(&mut self, ino: u64, lookups: u64) {
        if ino == ROOT {
            return;
        }
        let Some((_, held)) = self.by_number.get_mut(&ino) else { return };
        *held = held.saturating_sub(lookups);
        if *held == 0
            && let Some((node, _)) = self.by_number.remove(&ino)
            && self.by_node.get(&node) == Some(&ino)
        {
            self.by_node.remove(&node);
        }
    }

    /// The kernel was told that the directory `node` is removed, and finds nothing in that inode from then on. Should the
    /// same image get the same name again, it is another inode.
    pub(super) fn retire(&mut self, node: &Node) {
        self.by_node.remove(node);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        assert!(self.by_node.len() <= self.by_number.len());
        self.by_number.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_number_while_the_kernel_knows_it() {
        let mut inodes = Inodes::new();
        let first = inodes.look_up(Node::Jobs);
        assert_eq!(inodes.look_up(Node::Jobs), first);
        inodes.forget(first, 1);
        assert_eq!(inodes.node(first), Some(&Node::Jobs));
        inodes.forget(first, 1);
        assert_eq!(inodes.node(first), None);
        let again = inodes.look_up(Node::Jobs);
        assert_ne!(again, first, "a number is never given out twice");
        assert_eq!(inodes.len(), 2);
    }

    #[test]
    fn what_was_removed_comes_back_under_another_number() {
        let mut inodes = Inodes::new();
        let (first, again) = (inodes.look_up(Node::Jobs), inodes.look_up(Node::Jobs));
        assert_eq!(first, again);
        inodes.retire(&Node::Jobs);
        let second = inodes.look_up(Node::Jobs);
        assert_ne!(second, first);
        assert_eq!(inodes.node(first), Some(&Node::Jobs), "who has it open still has it");
        inodes.forget(first, 2);
        assert_eq!(inodes.node(first), None);
        assert_eq!(inodes.look_up(Node::Jobs), second);
    }

    #[test]
    fn the_root_is_never_forgotten() {
        let mut inodes = Inodes::new();
        inodes.forget(ROOT, 1000);
        assert_eq!(inodes.node(ROOT), Some(&Node::Root));
        inodes.forget(77, 1);
    }
}
