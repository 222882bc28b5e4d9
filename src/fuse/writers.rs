//! An inode of its own for every writer of a control file.
//!
//! The kernel holds the inode's lock for as long as a write(2) lasts, and `open(… O_TRUNC)`, truncate(2), chmod(2) and
//! other writes wait for that lock where no signal reaches them: while one commit runs, the second `echo` on the same
//! file could not even be killed. So as long as an inode is open for writing, the next lookup of the same name is given
//! another inode number, an alias, that stands for the same node of the tree. What is looked up while nobody writes
//! keeps its number.
//!
//! Two writers may have looked up before either opened. The one who opens second is told `ESTALE`, upon which the
//! kernel looks up once more (path_lookup, `LOOKUP_REVAL`) and is given an alias reserved for this caller. A caller that
//! comes back to the same inode nevertheless has not come by a path (/proc/PID/fd) and is let in.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;

/// Set in aliases, and in no inode number of the tree: those of files of images, which have no writers, have the bit above.
const ALIAS: u64 = 1 << 62;

/// Who has which writable inode open.
#[derive(Debug, Default)]
pub(crate) struct Writers(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Opens for writing, by the inode number that the kernel knows.
    opens: HashMap<u64, u64>,
    /// The inode number of each such open, by handle.
    handles: HashMap<u64, u64>,
    aliases: HashMap<u64, Alias>,
    /// Threads that were told `ESTALE` and have not opened yet.
    losers: HashSet<u32>,
    made: u64,
}

#[derive(Debug)]
struct Alias {
    ino: u64,
    lookups: u64,
    reserved: Option<u32>,
}

/// The inode is somebody else's: the kernel shall look up again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken;

impl Writers {
    /// The tree's inode number for the kernel's.
    pub(crate) fn resolve(&self, shown: u64) -> u64 {
        if shown & ALIAS == 0 {
            return shown;
        }
        self.0.lock().aliases.get(&shown).map_or(shown, |alias| alias.ino)
    }

    /// The number that thread `tid` is to see for `ino`, which it has just looked up.
    pub(crate) fn look_up(&self, ino: u64, tid: u32) -> u64 {
        let mut state = self.0.lock();
        if !state.opens.contains_key(&ino) && !state.aliases.values().any(|alias| alias.ino == ino) {
            return ino;
        }
        let loser = state.losers.contains(&tid);
        if !loser && !state.opens.contains_key(&ino) {
            return ino;
        }
        let State { opens, aliases, .. } = &mut *state;
        let fits = |(shown, alias): &(&u64, &mut Alias)| {
            let for_this_one = alias.reserved == Some(tid) || (!loser && alias.reserved.is_none());
            alias.ino == ino && for_this_one && !opens.contains_key(shown)
        };
        if let Some((shown, alias)) = aliases.iter_mut().find(fits) {
            alias.lookups += 1;
            return *shown;
        }
        state.made += 1;
        let shown = ALIAS | state.made;
        state.aliases.insert(shown, Alias { ino, lookups: 1, reserved: loser.then_some(tid) });
        shown
    }

    /// The kernel forgets `count` lookups of an inode; gives the tree's number for it.
    pub(crate) fn forget(&self, shown: u64, count: u64) -> u64 {
        if shown & ALIAS == 0 {
            return shown;
        }
        let mut state = self.0.lock();
        let Some(alias) = state.aliases.get_mut(&shown) else { return shown };
        let ino = alias.ino;
        alias.lookups = alias.lookups.saturating_sub(count);
        if alias.lookups == 0 {
            state.aliases.remove(&shown);
        }
        ino
    }

    /// Whether thread `tid` may open `shown` for writing. Follow with [`opened`](Self::opened).
    pub(crate) fn admit(&self, shown: u64, tid: u32) -> Result<(), Taken> {
        let mut state = self.0.lock();
        let taken = state.opens.contains_key(&shown);
        // Without a number to know the caller by, it could be refused twice.
        if taken && tid != 0 && state.losers.insert(tid) { Err(Taken) } else { Ok(()) }
    }

    /// `fh` is an open of `shown` for writing, by thread `tid`.
    pub(crate) fn opened(&self, shown: u64, fh: u64, tid: u32) {
        let mut state = self.0.lock();
        state.losers.remove(&tid);
        *state.opens.entry(shown).or_default() += 1;
        state.handles.insert(fh, shown);
        if let Some(alias) = state.aliases.get_mut(&shown) {
            alias.reserved = None;
        }
    }

    /// `fh` is closed.
    pub(crate) fn release(&self, fh: u64) {
        let mut state = self.0.lock();
        let Some(shown) = state.handles.remove(&fh) else { return };
        if let Some(opens) = state.opens.get_mut(&shown) {
            *opens -= 1;
            if *opens == 0 {
                state.opens.remove(&shown);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: u64 = 40;

    #[test]
    fn alone_the_number_stays() {
        let writers = Writers::default();
        for tid in [1, 2] {
            assert_eq!(writers.look_up(FILE, tid), FILE);
            assert_eq!(writers.admit(FILE, tid), Ok(()));
            writers.opened(FILE, u64::from(tid), tid);
            writers.release(tid.into());
        }
        assert_eq!(writers.look_up(FILE, 3), FILE);
    }

    #[test]
    fn whoever_comes_during_a_write_gets_an_alias_and_keeps_it() {
        let writers = Writers::default();
        writers.opened(FILE, 1, 1);
        let alias = writers.look_up(FILE, 2);
        assert_ne!(alias, FILE);
        assert_eq!(writers.look_up(FILE, 2), alias, "the kernel looks up twice: to revalidate, and anew");
        assert_eq!(writers.resolve(alias), FILE);
        assert_eq!(writers.look_up(FILE + 1, 2), FILE + 1);
        writers.opened(alias, 2, 2);
        let third = writers.look_up(FILE, 3);
        assert!(third != alias && third != FILE);
        writers.release(1);
        assert_eq!(writers.look_up(FILE, 4), FILE, "the first number is free again");
        assert_eq!(writers.forget(alias, 1), FILE);
        assert_eq!(writers.resolve(alias), FILE, "one lookup is left");
        assert_eq!(writers.forget(alias, 1), FILE);
        assert_eq!(writers.resolve(alias), alias, "forgotten");
    }

    #[test]
    fn of_those_that_looked_up_together_each_gets_in_by_the_second_try() {
        let writers = Writers::default();
        writers.opened(FILE, 1, 1);
        for tid in 2..9 {
            assert_eq!(writers.admit(FILE, tid), Err(Taken));
        }
        let shown: HashSet<u64> = (2..9).map(|tid| writers.look_up(FILE, tid)).collect();
        assert_eq!(shown.len(), 7, "one each");
        for tid in 2..9 {
            let alias = writers.look_up(FILE, tid);
            assert!(shown.contains(&alias));
            assert_eq!(writers.admit(alias, tid), Ok(()));
            writers.opened(alias, tid.into(), tid);
        }
        assert!(writers.0.lock().losers.is_empty());
    }

    #[test]
    fn a_reserved_alias_is_shown_to_nobody_else() {
        let writers = Writers::default();
        writers.opened(FILE, 1, 1);
        assert_eq!(writers.admit(FILE, 2), Err(Taken));
        let reserved = writers.look_up(FILE, 2);
        assert_ne!(writers.look_up(FILE, 3), reserved);
    }

    #[test]
    fn a_caller_without_a_path_is_let_in() {
        let writers = Writers::default();
        writers.opened(FILE, 1, 1);
        assert_eq!(writers.admit(FILE, 2), Err(Taken));
        assert_eq!(writers.admit(FILE, 2), Ok(()));
        assert_eq!(writers.admit(FILE, 0), Ok(()), "not visible in our PID namespace");
    }
}
