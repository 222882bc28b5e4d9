//! What was used last stays, as far as it fits; pure.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// A map whose values together weigh no more than its limit, but for the one that was put in last.
#[derive(Debug)]
pub(crate) struct Lru<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Oldest first.
    order: BTreeMap<u64, K>,
    next: u64,
    weight: u64,
    limit: u64,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    weight: u64,
    used: u64,
}

impl<K: Clone + Eq + Hash, V: Clone> Lru<K, V> {
    pub(crate) fn new(limit: u64) -> Lru<K, V> {
        Lru { entries: HashMap::new(), order: BTreeMap::new(), next: 0, weight: 0, limit }
    }

    pub(crate) fn find(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.get_mut(key)?;
        self.order.remove(&entry.used);
        entry.used = self.next;
        self.order.insert(self.next, key.clone());
        self.next += 1;
        Some(entry.value.clone())
    }

    /// Put in a value; returns those that had to go.
    pub(crate) fn insert(&mut self, key: K, value: V, weight: u64) -> Vec<(K, V)> {
        let mut gone: Vec<(K, V)> = self.remove(&key).map(|value| (key.clone(), value)).into_iter().collect();
        while self.weight + weight > self.limit {
            let Some((_, oldest)) = self.order.first_key_value() else { break };
            let oldest = oldest.clone();
            gone.extend(self.remove(&oldest).map(|value| (oldest, value)));
        }
        self.weight += weight;
        self.entries.insert(key.clone(), Entry { value, weight, used: self.next });
        self.order.insert(self.next, key);
        self.next += 1;
        gone
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.remove(key)?;
        self.order.remove(&entry.used);
        self.weight -= entry.weight;
        Some(entry.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays_as_far_as_it_fits() {
        let mut lru = Lru::new(10);
        assert!(lru.insert("a", 1, 4).is_empty());
        assert!(lru.insert("b", 2, 4).is_empty());
        assert_eq!(lru.find(&"a"), Some(1));
        assert_eq!(lru.insert("c", 3, 4), [("b", 2)]);
        assert_eq!((lru.find(&"a"), lru.find(&"b"), lru.find(&"c")), (Some(1), None, Some(3)));
        assert_eq!(lru.insert("a", 9, 2), [("a", 1)]);
        assert_eq!(lru.weight, 6);
        let gone = lru.insert("huge", 5, 100);
        assert_eq!(gone.len(), 2);
        assert_eq!(lru.find(&"huge"), Some(5));
        assert_eq!(lru.insert("d", 6, 1), [("huge", 5)]);
        assert_eq!((lru.order.len(), lru.entries.len(), lru.weight), (1, 1, 1));
    }
}
