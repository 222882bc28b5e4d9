//! The directory that CRIU left: what must be changed before it is packed, and what can be told of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::checkpoint::Error;
use crate::checkpoint::protobuf::{Field, Message, Value, field, fields, file, records};

/// No image file but those of memory is read that is longer.
const LONGEST: u64 = 64 << 20;
/// The length of a page, as CRIU counts them on the architectures that it knows.
pub(super) const PAGE: u64 = 4096;
/// What a command line may be shown as, in bytes.
const SHOWN: u64 = 4096;

/// A finished dump.
#[derive(Debug)]
pub(super) struct Dump {
    /// What the runtime knows as the image path.
    pub(super) images: PathBuf,
    /// What it knows as the work path.
    pub(super) work: PathBuf,
}

/// What CRIU counted (criu, `images/stats.proto`), times in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stats {
    pub(super) freezing: u64,
    pub(super) frozen: u64,
    pub(super) memory_dump: u64,
    pub(super) memory_write: u64,
    pub(super) pages_scanned: u64,
    pub(super) pages_written: u64,
}

/// A range of a process's memory, as a `pagemap` file has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) address: u64,
    pub(super) pages: u64,
    pub(super) flags: u64,
}

/// The pages are in the parent's file.
pub(super) const IN_PARENT: u64 = 1;
/// They are in the process's own.
pub(super) const PRESENT: u64 = 4;

/// The field of a count that may be larger than a 32-bit number.
const WIDE: u64 = 5;

/// A `pagemap` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pagemap {
    /// The magic numbers that the file begins with.
    pub(super) head: Vec<u8>,
    /// Which `pages-N.img`.
    pub(super) pages_id: u64,
    pub(super) ranges: Vec<Mapped>,
    /// Whether the counts are 64-bit numbers.
    pub(super) is_wide: bool,
}

impl Pagemap {
    pub(super) fn parse(bytes: &[u8]) -> Result<Pagemap, &'static str> {
        let (head, records) = records(bytes)?;
        let [first, entries @ ..] = &records[..] else { return Err("it has no head") };
        let pages_id = field(first, 1).ok_or("its head has no number")?.number();
        let range = |entry: &&[u8]| {
            let number = |at| field(entry, at).map(Value::number);
            // The count was a 32-bit number at first; in_parent was a field of its own before there were flags.
            let pages = number(WIDE).or(number(2))?;
            let flags =
                number(4).or_else(|| number(3).map(|is_in_parent| if is_in_parent == 0 { PRESENT } else { IN_PARENT }));
            Some(Mapped { address: number(1)?, pages, flags: flags.unwrap_or(PRESENT) })
        };
        let ranges = entries.iter().map(range).collect::<Option<_>>().ok_or("an entry has no address")?;
        let is_wide = entries.iter().any(|entry| field(entry, WIDE).is_some());
        Ok(Pagemap { head: head.to_owned(), pages_id, ranges, is_wide })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut head = Message::default();
        head.number(1, self.pages_id);
        let entries = self.ranges.iter().map(|range| {
            let mut entry = Message::default();
            entry.number(1, range.address);
            if let Ok(pages) = u32::try_from(range.pages) {
                entry.number(2, pages.into());
            }
            entry.number(4, range.flags);
            if self.is_wide {
                entry.number(WIDE, range.pages);
            }
            entry
        });
        let messages: Vec<Message> = [head].into_iter().chain(entries).collect();
        file(&self.head, messages.iter().map(|message| &message.0[..]))
    }
}

/// A process of the dump.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Process {
    parent: u64,
    threads: usize,
    name: String,
    command: String,
    pages: u64,
}

impl Dump {
    /// The names in the image directory, sorted; nothing but files is taken.
    pub(super) fn names(&self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        let entries = fs::read_dir(&self.images).map_err(|source| self.failed("list", "", source))?;
        for entry in entries {
            let entry = entry.map_err(|source| self.failed("list", "", source))?;
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if let Ok(name) = entry.file_name().into_string()
                && is_file
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(super) fn failed(&self, step: &'static str, name: &str, source: io::Error) -> Error {
        Error::Dumped { step, path: self.images.join(name), source }
    }

    fn malformed(&self, name: &str, reason: &'static str) -> Error {
        self.failed("read", name, io::Error::new(io::ErrorKind::InvalidData, reason))
    }

    /// A file of the dump that is read as a whole; none if there is none.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let mut bytes = Vec::new();
        match fs::File::open(self.images.join(name)) {
            Ok(file) => match file.take(LONGEST + 1).read_to_end(&mut bytes) {
                Ok(read) if read as u64 > LONGEST => Err(self.malformed(name, "it is too long")),
                Ok(_) => Ok(Some(bytes)),
                Err(source) => Err(self.failed("read", name, source)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed("read", name, source)),
        }
    }

    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        fs::write(self.images.join(name), bytes).map_err(|source| self.failed("write", name, source))
    }

    /// What restores elsewhere: a root directory of any mode, and a cgroup that runs.
    ///
    /// containers/storage makes the root of a container 0555 and others 0755, and CRIU refuses to restore a process whose
    /// working directory has another mode. The freezer's state is in the dump as we set it.
    pub(super) fn make_portable(&self) -> Result<(), Error> {
        if let Some(files) = self.read("files.img")? {
            let portable = without_root_mode(&files).map_err(|reason| self.malformed("files.img", reason))?;
            if let Some(portable) = portable {
                self.write("files.img", &portable)?;
            }
        }
        if let Some(mut cgroups) = self.read("cgroup.img")?
            && thaw(&mut cgroups)
        {
            self.write("cgroup.img", &cgroups)?;
        }
        Ok(())
    }

    /// CRIU's log, as far as there is one.
    pub(super) fn log(&self) -> Vec<u8> {
        let mut log = Vec::new();
        if let Ok(file) = fs::File::open(self.work.join("dump.log")) {
            // What there is of it.
            let _ = file.take(LONGEST).read_to_end(&mut log);
        }
        log
    }

    /// `stats-dump`, wherever the runtime's CRIU put it.
    pub(super) fn stats_file(&self) -> Option<Vec<u8>> {
        [&self.work, &self.images].into_iter().find_map(|directory| {
            let mut bytes = Vec::new();
            fs::File::open(directory.join("stats-dump")).ok()?.take(LONGEST).read_to_end(&mut bytes).ok()?;
            Some(bytes)
        })
    }

    /// The processes, a line each: the tree, and of each its number in the container, its threads, its memory in the
    /// dump, its name and its command.
    pub(super) fn processes(&self) -> Result<String, Error> {
        let tree = self.read("pstree.img")?.ok_or_else(|| self.malformed("pstree.img", "it is missing"))?;
        let (_, entries) = records(&tree).map_err(|reason| self.malformed("pstree.img", reason))?;
        let mut processes: BTreeMap<u64, Process> = BTreeMap::new();
        for entry in entries {
            let pid = field(entry, 1).map_or(0, Value::number);
            let threads = fields(entry).filter(|field| field.number == 5).map(|field| count(field.value)).sum();
            let parent = field(entry, 2).map_or(0, Value::number);
            let name = self.name(pid)?;
            let (command, pages) = self.memory(pid)?;
            processes.insert(pid, Process { parent, threads, name, command, pages });
        }
        Ok(draw(&processes))
    }

    fn name(&self, pid: u64) -> Result<String, Error> {
        let core = self.read(&format!("core-{pid}.img"))?.unwrap_or_default();
        let Ok((_, entries)) = records(&core) else { return Ok(String::new()) };
        let task = entries.first().and_then(|core| field(core, 3)).map(Value::bytes).unwrap_or_default();
        let name = field(task, 6).map(Value::bytes).unwrap_or_default();
        Ok(printable(name.split(|byte| *byte == 0).next().unwrap_or_default()))
    }

    /// A process's command line, and how many of its pages the dump has.
    fn memory(&self, pid: u64) -> Result<(String, u64), Error> {
        let Some(map) = self.read(&format!("pagemap-{pid}.img"))? else { return Ok((String::new(), 0)) };
        let map = Pagemap::parse(&map).map_err(|reason| self.malformed(&format!("pagemap-{pid}.img"), reason))?;
        let pages = map.ranges.iter().map(|range| range.pages).sum();
        let mm = self.read(&format!("mm-{pid}.img"))?.unwrap_or_default();
        let Ok((_, entries)) = records(&mm) else { return Ok((String::new(), pages)) };
        let entry = entries.first().copied().unwrap_or_default();
        let (start, end) = (field(entry, 8).map_or(0, Value::number), field(entry, 9).map_or(0, Value::number));
        let arguments = self.peek(&map, start, end.saturating_sub(start).min(SHOWN));
        let words = arguments.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        Ok((words.map(printable).collect::<Vec<_>>().join(" "), pages))
    }

    /// Bytes of a process's memory, as far as its own pages have them.
    fn peek(&self, map: &Pagemap, start: u64, length: u64) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let mut before = 0;
        for range in map.ranges.iter().filter(|range| range.flags & IN_PARENT == 0) {
            let size = range.pages.saturating_mul(PAGE);
            if start >= range.address && start - range.address < size {
                let within = start - range.address;
                let mut bytes = vec![0; length.min(size - within) as usize];
                let file = fs::File::open(self.images.join(format!("pages-{}.img", map.pages_id)));
                let read = file.and_then(|file| file.read_exact_at(&mut bytes, before + within));
                return if read.is_ok() { bytes } else { Vec::new() };
            }
            before += size;
        }
        Vec::new()
    }
}

/// A repeated number may be packed.
fn count(value: Value<'_>) -> usize {
    match value {
        Value::Number(_) => 1,
        Value::Bytes(packed) => packed.iter().filter(|byte| **byte & 0x80 == 0).count(),
    }
}

fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The tree, in the order of the numbers; what has no parent in the dump stands at the margin.
fn draw(processes: &BTreeMap<u64, Process>) -> String {
    let mut text = String::from("PID     THREADS  MEMORY_KB  COMMAND\n");
    let is_root = |pid: &u64, process: &Process| process.parent == *pid || !processes.contains_key(&process.parent);
    let mut open: Vec<(u64, usize)> =
        processes.iter().filter(|(pid, process)| is_root(pid, process)).map(|(pid, _)| (*pid, 0)).rev().collect();
    // A process has one parent, so that nothing is drawn twice; those in a circle are not drawn.
    while let Some((pid, depth)) = open.pop() {
        let process = &processes[&pid];
        let shown = if process.command.is_empty() { format!("[{}]", process.name) } else { process.command.clone() };
        let indent = "  ".repeat(depth.min(32));
        let memory = process.pages.saturating_mul(PAGE / 1024);
        text.push_str(&format!("{pid:<7} {:<8} {memory:<10} {indent}{shown}\n", process.threads));
        let children = processes.iter().filter(|(child, process)| process.parent == pid && **child != pid);
        open.extend(children.map(|(child, _)| (*child, depth + 1)).rev());
    }
    text
}

/// `files.img` with no mode for the root directory; none if it has none.
fn without_root_mode(bytes: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    const REGULAR: u64 = 3;
    const NAME: u64 = 6;
    const MODE: u64 = 10;
    let (head, records) = records(bytes)?;
    let is_root = |entry: &[u8]| {
        field(entry, REGULAR).map(Value::bytes).is_some_and(|regular| {
            field(regular, NAME).map(Value::bytes) == Some(b"/") && field(regular, MODE).is_some()
        })
    };
    if !records.iter().any(|record| is_root(record)) {
        return Ok(None);
    }
    let strip = |record: &&[u8]| {
        if !is_root(record) {
            return record.to_vec();
        }
        let mut entry = Message::default();
        for Field { number, value, raw } in fields(record) {
            if number != REGULAR {
                entry.0.extend_from_slice(raw);
                continue;
            }
            let kept: Vec<u8> = fields(value.bytes())
                .filter(|field| field.number != MODE)
                .flat_map(|field| field.raw)
                .copied()
                .collect();
            entry.bytes(REGULAR, &kept);
        }
        entry.0
    };
    let stripped: Vec<Vec<u8>> = records.iter().map(strip).collect();
    Ok(Some(file(head, stripped.iter().map(|record| &record[..]))))
}

/// `cgroup.img` with a freezer that is not on, in place; whether it was.
fn thaw(bytes: &mut [u8]) -> bool {
    // A property is its name and its value (criu, images/cgroup.proto); both words of v1 have the same length.
    const PROPERTIES: [(&[u8], &[u8]); 2] =
        [(b"\x0a\x0dfreezer.state\x12\x06FROZEN", b"THAWED"), (b"\x0a\x0dcgroup.freeze\x12\x011", b"0")];
    let mut found = false;
    for (on, off) in PROPERTIES {
        let places = bytes.windows(on.len()).enumerate().filter(|(_, window)| *window == on);
        let places: Vec<usize> = places.map(|(at, _)| at + on.len() - off.len()).collect();
        for at in places {
            bytes[at..at + off.len()].copy_from_slice(off);
            found = true;
        }
    }
    found
}

impl Stats {
    /// `stats-dump`: a record with a message of its own.
    pub(super) fn parse(bytes: &[u8]) -> Option<Stats> {
        let (_, records) = records(bytes).ok()?;
        let dump = field(records.first()?, 1)?.bytes();
        let number = |at| field(dump, at).map_or(0, Value::number);
        Some(Stats {
            freezing: number(1),
            frozen: number(2),
            memory_dump: number(3),
            memory_write: number(4),
            pages_scanned: number(5),
            pages_written: number(7),
        })
    }
}

/// Whether `path` holds what CRIU writes first and last.
pub(super) fn is_whole(path: &Path) -> bool {
    ["inventory.img", "pstree.img"].iter().all(|name| path.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: [u8; 8] = [0x19, 0x43, 0x56, 0x54, 0x38, 0x31, 0x30, 0x56];

    fn regular(name: &[u8], mode: u64) -> Vec<u8> {
        let mut regular = Message::default();
        regular.number(1, 7);
        regular.bytes(NAME, name);
        regular.number(10, mode);
        let mut entry = Message::default();
        entry.number(1, 1);
        entry.number(2, 7);
        entry.bytes(3, &regular.0);
        entry.0
    }
    const NAME: u64 = 6;

    #[test]
    fn only_the_root_loses_its_mode() {
        let (root, other) = (regular(b"/", 0o40555), regular(b"/etc", 0o40755));
        let bytes = file(&HEAD, [&root[..], &other]);
        let changed = without_root_mode(&bytes).unwrap().unwrap();
        let (head, records) = records(&changed).unwrap();
        assert_eq!(head, HEAD);
        let inner = field(records[0], 3).unwrap().bytes();
        assert_eq!((field(inner, 10), field(inner, NAME).unwrap().bytes()), (None, &b"/"[..]));
        assert_eq!(field(records[0], 2).unwrap().number(), 7);
        assert_eq!(records[1], &other[..]);
        assert_eq!(without_root_mode(&changed), Ok(None));
    }

    #[test]
    fn a_frozen_cgroup_becomes_one_that_runs() {
        let mut bytes = b"x\x0a\x0dfreezer.state\x12\x06FROZENy\x0a\x0dcgroup.freeze\x12\x011z".to_vec();
        assert!(thaw(&mut bytes));
        assert_eq!(bytes, b"x\x0a\x0dfreezer.state\x12\x06THAWEDy\x0a\x0dcgroup.freeze\x12\x010z");
        assert!(!thaw(&mut bytes));
    }

    #[test]
    fn stats_are_read() {
        let bytes = [
            &[0x40, 0x59, 0x10, 0x55, 0x06, 0x33, 0x09, 0x57, 0x0c, 0, 0, 0][..],
            &[0x0a, 0x0a, 0x08, 0x92, 0x03, 0x10, 0xbf, 0xa4, 0x02, 0x38, 0x22, 0x18],
        ]
        .concat();
        let stats = Stats::parse(&bytes).unwrap();
        assert_eq!((stats.freezing, stats.frozen, stats.pages_written), (402, 37439, 34));
        assert_eq!(Stats::parse(b"short"), None);
    }

    #[test]
    fn a_pagemap_is_written_as_it_was_read() {
        let ranges = vec![
            Mapped { address: 0x40_0000, pages: 3, flags: PRESENT },
            Mapped { address: 0x7fff_0000_0000, pages: 70_000, flags: IN_PARENT },
        ];
        for is_wide in [false, true] {
            let map = Pagemap { head: HEAD.to_vec(), pages_id: 4, ranges: ranges.clone(), is_wide };
            assert_eq!(Pagemap::parse(&map.encode()), Ok(map));
        }
        assert!(Pagemap::parse(b"").is_err());
    }

    #[test]
    fn the_tree_is_drawn_once_and_ends() {
        let process = |parent, command: &str| {
            let name = "name".to_owned();
            Process { parent, threads: 1, name, command: command.to_owned(), pages: 2 }
        };
        let processes =
            [(1, process(0, "init")), (9, process(1, "")), (5, process(1, "sh -c x")), (6, process(5, "z"))];
        let circle = [(20, process(21, "a")), (21, process(20, "b"))];
        let text = draw(&processes.into_iter().chain(circle).collect());
        let lines: Vec<_> = text.lines().skip(1).map(|line| line[28..].to_owned()).collect();
        assert_eq!(lines, ["init", "  sh -c x", "    z", "  [name]"]);
        assert!(text.contains("\n1       1        8          init\n"), "{text}");
    }
}
