//! Memory that did not change since the container's last checkpoint is stored once.
//!
//! CRIU reads what a dump marks as "in the parent" from the images in `parent` beside it (criu, "Incremental dumps"), which
//! is a link where CRIU makes it and may be a directory. So the memory of a first checkpoint becomes a layer of
//! `checkpoint/parent/`, which a later one takes as it is, adding only the pages that differ. Every engine that restores a
//! checkpoint restores that: it is CRIU's own format. A page is compared with what was at its address in the same process
//! by its SHA-256, cut to half: who finds two pages for one of these spoils nothing but his own memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use serde_json::{Value, json};

use crate::checkpoint::dump::{Dump, IN_PARENT, Mapped, PAGE, PRESENT, Pagemap};
use crate::checkpoint::{Error, Pack};
use crate::image::Layer;
use crate::oci::{Digest, Hasher};
use crate::store::{Spool, Store};

/// Less is not worth it …
const LEAST: u64 = 8 << 20;
/// … and the hashes of more do not fit into a fact.
const MOST: u64 = 3 << 30;
/// How much of a file is read at a time: whole pages.
const CHUNK: usize = 1 << 20;
/// The kind of the facts.
const FACT: &str = "pages";
/// Half of a SHA-256.
const HASH: usize = 16;

type Hash = [u8; HASH];

/// The memory of one dump, to be packed.
#[derive(Debug)]
pub(super) struct Memory {
    /// `pagemap` files that say other than those of the dump.
    pub(super) maps: BTreeMap<String, Vec<u8>>,
    /// In their order.
    pub(super) layers: Vec<Layer>,
}

/// A process's memory, with a hash for each page that the dump has.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hashed {
    map: Pagemap,
    hashes: Vec<Hash>,
}

/// What a layer of `checkpoint/parent/` holds, by the name of the `pagemap` file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    layer: Layer,
    processes: BTreeMap<String, Hashed>,
}

/// The layers of the dump's memory; `key` is the container's. None if the memory is too small or too large to be compared.
pub(super) fn pack(pack: &Pack<'_>, store: &Store, key: &str, dump: &Dump) -> Result<Option<Memory>, Error> {
    let names = dump.names()?;
    let mut sizes = 0;
    for name in names.iter().filter(|name| name.starts_with("pages-")) {
        let size =
            std::fs::metadata(dump.images.join(name)).map_err(|source| dump.failed("look at", name, source))?.len();
        sizes += size;
    }
    if !(LEAST..=MOST).contains(&sizes) {
        return Ok(None);
    }
    let mut processes = BTreeMap::new();
    // Memory that processes share has maps of its own, whose numbers are not the same the next time.
    for name in names.iter().filter(|name| name.starts_with("pagemap-") && !name.starts_with("pagemap-shmem")) {
        let bytes = dump.read(name)?.unwrap_or_default();
        let broken = |reason| dump.failed("read", name, io::Error::new(io::ErrorKind::InvalidData, reason));
        let map = Pagemap::parse(&bytes).map_err(broken)?;
        let is_plain = map.ranges.iter().all(|range| range.flags & IN_PARENT == 0);
        if !is_plain {
            // The copies made before are its parent already.
            return Ok(None);
        }
        let hashes = hash(pack, dump, &map)?;
        processes.insert(name.clone(), Hashed { map, hashes });
    }
    let key = Digest::of(key.as_bytes()).hex();
    let known = store.recall(FACT, &key).and_then(|fact| Known::decode(&fact));
    let known = match known {
        Some(known) if pack.lease.adopt(&known.layer.descriptor.digest)? == Some(known.layer.descriptor.size) => known,
        _ => return first(pack, store, &key, dump, processes).map(Some),
    };
    let plans: BTreeMap<&String, Vec<Mapped>> =
        processes.iter().map(|(name, process)| (name, compare(process, known.processes.get(name)))).collect();
    let fresh: u64 =
        plans.values().flatten().filter(|range| range.flags & IN_PARENT == 0).map(|range| range.pages).sum();
    if fresh.saturating_mul(PAGE) > sizes / 2 {
        // What differs from it was to be stored again with every later checkpoint.
        return first(pack, store, &key, dump, processes).map(Some);
    }
    let mut members = pack.members()?;
    let mut maps = BTreeMap::new();
    for (name, ranges) in plans {
        let map = &processes[name].map;
        let file = differing(pack, dump, map, &ranges)?;
        members.file(&format!("checkpoint/pages-{}.img", map.pages_id), &file.open()?)?;
        maps.insert(name.clone(), Pagemap { ranges, ..map.clone() }.encode());
    }
    shared(pack, &mut members, dump, &processes)?;
    pack.progress.log(format!(
        "{} of {} bytes of memory are those of the last checkpoint",
        sizes - fresh * PAGE,
        sizes
    ));
    Ok(Some(Memory { maps, layers: vec![known.layer, members.finish()?] }))
}

/// The memory as what later checkpoints will be compared with.
fn first(
    pack: &Pack<'_>,
    store: &Store,
    key: &str,
    dump: &Dump,
    processes: BTreeMap<String, Hashed>,
) -> Result<Memory, Error> {
    let mut parent = pack.members()?;
    parent.directory("checkpoint/parent")?;
    let mut own = pack.members()?;
    let mut maps = BTreeMap::new();
    for (name, process) in &processes {
        let pages = format!("pages-{}.img", process.map.pages_id);
        parent.bytes(&format!("checkpoint/parent/{name}"), &process.map.encode())?;
        let file = File::open(dump.images.join(&pages)).map_err(|source| dump.failed("open", &pages, source))?;
        parent.file(&format!("checkpoint/parent/{pages}"), &file)?;
        own.bytes(&format!("checkpoint/{pages}"), b"")?;
        let ranges = process.map.ranges.iter().map(|range| Mapped { flags: IN_PARENT, ..*range }).collect();
        maps.insert(name.clone(), Pagemap { ranges, ..process.map.clone() }.encode());
    }
    shared(pack, &mut own, dump, &processes)?;
    let layer = parent.finish()?;
    let known = Known { layer: layer.clone(), processes };
    if let Err(error) = store.remember(FACT, key, &known.encode()) {
        log::warn!("the memory of a checkpoint is not remembered, and will be stored anew the next time: {error}");
    }
    Ok(Memory { maps, layers: vec![layer, own.finish()?] })
}

/// The files of pages that belong to no process's own memory.
fn shared(
    pack: &Pack<'_>,
    members: &mut crate::checkpoint::archive::Members<'_>,
    dump: &Dump,
    processes: &BTreeMap<String, Hashed>,
) -> Result<(), Error> {
    let own: Vec<String> = processes.values().map(|process| format!("pages-{}.img", process.map.pages_id)).collect();
    for name in dump.names()?.iter().filter(|name| name.starts_with("pages-") && !own.contains(name)) {
        pack.add(members, dump, "checkpoint", name)?;
    }
    Ok(())
}

fn hash(pack: &Pack<'_>, dump: &Dump, map: &Pagemap) -> Result<Vec<Hash>, Error> {
    let name = format!("pages-{}.img", map.pages_id);
    let failed = |source| dump.failed("read", &name, source);
    let file = File::open(dump.images.join(&name)).map_err(failed)?;
    let pages = map.ranges.iter().fold(0u64, |sum, range| sum.saturating_add(range.pages));
    let length = file.metadata().map_err(failed)?.len();
    if pages.saturating_mul(PAGE) != length {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it has not the pages of its map")));
    }
    let mut hashes = Vec::with_capacity((length / PAGE) as usize);
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while at < length {
        pack.progress.check()?;
        let piece = &mut chunk[..(length - at).min(CHUNK as u64) as usize];
        file.read_exact_at(piece, at).map_err(failed)?;
        for page in piece.chunks(PAGE as usize) {
            let mut hasher = Hasher::new();
            hasher.update(page);
            let mut hash = [0; HASH];
            hash.copy_from_slice(&hasher.digest().as_bytes()[..HASH]);
            hashes.push(hash);
        }
        at += piece.len() as u64;
    }
    Ok(hashes)
}

/// The ranges of `process`, cut into what `known` has at the same addresses and what it has not.
fn compare(process: &Hashed, known: Option<&Hashed>) -> Vec<Mapped> {
    let Some(known) = known else { return process.map.ranges.clone() };
    // Each range with the number of pages before it: ranges are in the order of their addresses.
    let mut before = 0;
    let index: Vec<(Mapped, u64)> = known
        .map
        .ranges
        .iter()
        .map(|range| {
            let entry = (*range, before);
            before += range.pages;
            entry
        })
        .collect();
    let hash_at = |address: u64| {
        let at = index.partition_point(|(range, _)| range.address <= address).checked_sub(1)?;
        let (range, before) = index[at];
        let page = (address - range.address) / PAGE;
        (page < range.pages).then(|| known.hashes.get((before + page) as usize)).flatten()
    };
    let mut cut: Vec<Mapped> = Vec::new();
    let mut hashes = process.hashes.iter();
    for range in &process.map.ranges {
        let first = cut.len();
        for page in 0..range.pages {
            let address = range.address.wrapping_add(page.wrapping_mul(PAGE));
            let Some(hash) = hashes.next() else { return process.map.ranges.clone() };
            let flags = if hash_at(address) == Some(hash) { IN_PARENT } else { range.flags | PRESENT };
            match cut[first..].last_mut() {
                Some(last) if last.flags == flags => last.pages += 1,
                _ => cut.push(Mapped { address, pages: 1, flags }),
            }
        }
    }
    cut
}

/// The pages of the dump that `ranges` has as its own.
fn differing(pack: &Pack<'_>, dump: &Dump, map: &Pagemap, ranges: &[Mapped]) -> Result<Spool, Error> {
    let name = format!("pages-{}.img", map.pages_id);
    let failed = |source| dump.failed("read", &name, source);
    let file = File::open(dump.images.join(&name)).map_err(failed)?;
    let mut out = pack.lease.spool()?;
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    for range in ranges {
        let end = at + range.pages * PAGE;
        while range.flags & IN_PARENT == 0 && at < end {
            pack.progress.check()?;
            let piece = &mut chunk[..(end - at).min(CHUNK as u64) as usize];
            file.read_exact_at(piece, at).map_err(failed)?;
            out.write_all(piece).map_err(|error| out.error(error))?;
            at += piece.len() as u64;
        }
        at = end;
    }
    Ok(out)
}

impl Known {
    /// A line of JSON, and then the hashes, in the order of the line.
    fn encode(&self) -> Vec<u8> {
        let ranges = |map: &Pagemap| -> Vec<Value> {
            map.ranges.iter().map(|range| json!([range.address, range.pages, range.flags])).collect()
        };
        let processes: Vec<Value> = self
            .processes
            .iter()
            .map(|(name, process)| {
                json!([
                    name,
                    process.map.head,
                    process.map.pages_id,
                    ranges(&process.map),
                    process.hashes.len(),
                    process.map.is_wide,
                ])
            })
            .collect();
        let head = json!({ "layer": self.layer.descriptor, "diff_id": self.layer.diff_id, "processes": processes });
        let mut bytes = head.to_string().into_bytes();
        bytes.push(b'\n');
        self.processes.values().for_each(|process| bytes.extend(process.hashes.iter().flatten()));
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Known> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let head: Value = serde_json::from_slice(&bytes[..end]).ok()?;
        let mut hashes = bytes[end + 1..].chunks_exact(HASH);
        let mut processes = BTreeMap::new();
        for process in head["processes"].as_array()? {
            let range = |range: &Value| {
                Some(Mapped { address: range[0].as_u64()?, pages: range[1].as_u64()?, flags: range[2].as_u64()? })
            };
            let map = Pagemap {
                head: serde_json::from_value(process[1].clone()).ok()?,
                pages_id: process[2].as_u64()?,
                ranges: process[3].as_array()?.iter().map(range).collect::<Option<_>>()?,
                is_wide: process[5].as_bool()?,
            };
            let count = usize::try_from(process[4].as_u64()?).ok()?;
            let hashes: Vec<Hash> = hashes.by_ref().take(count).filter_map(|hash| hash.try_into().ok()).collect();
            if hashes.len() != count {
                return None;
            }
            processes.insert(process[0].as_str()?.to_owned(), Hashed { map, hashes });
        }
        let descriptor = serde_json::from_value(head["layer"].clone()).ok()?;
        let diff_id = serde_json::from_value(head["diff_id"].clone()).ok()?;
        Some(Known { layer: Layer { descriptor, diff_id }, processes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Descriptor, DiffId};

    fn hashed(ranges: &[(u64, u64)], hashes: &[u8]) -> Hashed {
        let range = |(page, pages): &(u64, u64)| Mapped { address: page * PAGE, pages: *pages, flags: PRESENT };
        let map = Pagemap { head: vec![1, 2], pages_id: 3, ranges: ranges.iter().map(range).collect(), is_wide: false };
        Hashed { map, hashes: hashes.iter().map(|byte| [*byte; HASH]).collect() }
    }

    fn shown(ranges: &[Mapped]) -> Vec<(u64, u64, bool)> {
        ranges.iter().map(|range| (range.address / PAGE, range.pages, range.flags & IN_PARENT != 0)).collect()
    }

    #[test]
    fn only_what_is_the_same_at_the_same_address_is_taken_from_the_parent() {
        let known = hashed(&[(10, 3), (20, 2)], &[1, 2, 3, 4, 5]);
        assert_eq!(shown(&compare(&known, Some(&known))), [(10, 3, true), (20, 2, true)]);
        // One page differs, one is beyond the end, one has moved, and one lies where nothing was.
        let now = hashed(&[(10, 4), (20, 1), (21, 1), (15, 1)], &[1, 9, 3, 4, 4, 4, 1]);
        let expected = [
            (10, 1, true),
            (11, 1, false),
            (12, 1, true),
            (13, 1, false),
            (20, 1, true),
            (21, 1, false),
            (15, 1, false),
        ];
        assert_eq!(shown(&compare(&now, Some(&known))), expected);
        assert_eq!(compare(&now, None), now.map.ranges);
    }

    #[test]
    fn what_is_remembered_is_read_again() {
        let descriptor =
            Descriptor { media_type: "x".to_owned(), digest: Digest::of(b"l"), size: 9, annotations: BTreeMap::new() };
        let layer = Layer { descriptor, diff_id: DiffId::of(b"t") };
        let one = ("pagemap-1.img".to_owned(), hashed(&[(10, 2)], b"\n\n"));
        let two = ("pagemap-7.img".to_owned(), hashed(&[(10, 1), (40, 2)], &[4, 5, 6]));
        let known = Known { layer, processes: [one, two].into() };
        let bytes = known.encode();
        assert_eq!(Known::decode(&bytes), Some(known));
        assert_eq!(Known::decode(&bytes[..bytes.len() - 1]), None);
        assert_eq!(Known::decode(b"{}\n"), None);
    }
}
