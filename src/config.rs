//! The mount options: what `-o` may say, as one table and a pure parser.

use std::num::NonZero;
use std::path::PathBuf;

use crate::oci::{ImageName, InvalidName};

/// Where snapfs keeps its images unless told otherwise.
pub const DEFAULT_STORE: &str = "/var/lib/snapfs";

/// Our own options, each with what its value is and what it means; the help text and the manual page show the same.
pub const OPTIONS: [(&str, &str, &str); 12] = [
    ("store", "DIR", "where images are kept (default /var/lib/snapfs)"),
    ("gid", "GROUP", "the group, by name or number, that may write to control files besides root"),
    ("runc-root", "DIR", "a state directory of runc to look in; may be repeated (default /run/runc)"),
    ("crun-root", "DIR", "a state directory of crun to look in; may be repeated (default /run/crun)"),
    ("podman-root", "DIR", "podman's --root (default: podman's own)"),
    ("podman-runroot", "DIR", "podman's --runroot (default: podman's own)"),
    (
        "freeze-limit",
        "SECONDS",
        "how long a container may stay frozen before it is let run (default 2, and 120 with pause=full)",
    ),
    ("jobs", "N", "how many jobs run at the same time (default: by the number of processors)"),
    (
        "cache",
        "SIZE",
        "how much of the store's disk unpacked parts of images may take, such as 500M or 20G (default 4G)",
    ),
    ("symlinks", "raw|in-root", "show links in images as they are (default), or so that none leads out of its image"),
    ("namespace", "NAME", "show only images whose names are below NAME/, and put new ones there"),
    ("log", "FILE", "where a daemon in the background logs (default: syslog)"),
];

/// What mount(8), fstab(5) and systemd may add, and what we need not heed: it says who may mount, when, or what has no
/// meaning here. `nosuid` and `nodev` hold always.
const IGNORED: [&str; 38] = [
    "_netdev",
    "async",
    "atime",
    "auto",
    "defaults",
    "diratime",
    "dirsync",
    "exec",
    "fail",
    "group",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "nogroup",
    "noiversion",
    "nolazytime",
    "nomand",
    "noowner",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "rw",
    "silent",
    "strictatime",
    "sync",
    "user",
    "users",
    "allow_other",
];

/// Prefixes of options for others: systemd's `x-…`, mount(8)'s `X-…` and `comment=`, and, when remounting, what
/// mountinfo shows of a FUSE mount.
const IGNORED_PREFIXES: [&str; 8] =
    ["x-", "X-", "comment=", "user_id=", "group_id=", "default_permissions", "max_read=", "user="];

/// What a mount is made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `store=`: absolute.
    pub store: PathBuf,
    /// `gid=`: a name or a number, not looked up yet.
    pub group: Option<String>,
    /// `runc-root=`, in the order given; empty for the default.
    pub runc_roots: Vec<PathBuf>,
    /// `crun-root=`, in the order given; empty for the default.
    pub crun_roots: Vec<PathBuf>,
    /// `podman-root=`
    pub podman_root: Option<PathBuf>,
    /// `podman-runroot=`
    pub podman_runroot: Option<PathBuf>,
    /// `jobs=`
    pub jobs: Option<NonZero<usize>>,
    /// `freeze-limit=`, in seconds.
    pub freeze_limit: Option<NonZero<u64>>,
    /// `cache=`, in bytes.
    pub cache: Option<u64>,
    /// `symlinks=in-root`
    pub symlinks_in_root: bool,
    /// The environment's `SOURCE_DATE_EPOCH`, in seconds; not an option, and set by whoever read the environment.
    pub source_date_epoch: Option<i64>,
    /// `namespace=`
    pub namespace: Option<ImageName>,
    /// `log=`
    pub log: Option<PathBuf>,
    /// `ro`: nothing can be written, control files included.
    pub read_only: bool,
    /// `noexec`
    pub no_exec: bool,
    /// `remount`: change the flags of the mount that is there.
    pub remount: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            store: PathBuf::from(DEFAULT_STORE),
            group: None,
            runc_roots: Vec::new(),
            crun_roots: Vec::new(),
            podman_root: None,
            podman_runroot: None,
            jobs: None,
            freeze_limit: None,
            cache: None,
            symlinks_in_root: false,
            source_date_epoch: None,
            namespace: None,
            log: None,
            read_only: false,
            no_exec: false,
            remount: false,
        }
    }
}

/// What to do with an option that nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// Fail.
    Refuse,
    /// Go on: mount(8)'s `-s`.
    Ignore,
}

/// An option that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nobody knows it.
    #[error("unknown mount option \"{option}\"; did you mean \"{nearest}\"?")]
    Unknown {
        /// As given.
        option: String,
        /// The one that is spelled most like it.
        nearest: &'static str,
    },
    /// It is one of ours, and lacks its value.
    #[error("mount option \"{option}\" needs a value: {option}={value}")]
    NoValue {
        /// Its name.
        option: &'static str,
        /// What its value is.
        value: &'static str,
    },
    /// A daemon changes its directory, so relative paths would mean nothing.
    #[error("mount option \"{option}={path}\" needs an absolute path; begin it with /")]
    Relative {
        /// Its name.
        option: &'static str,
        /// The value.
        path: String,
    },
    /// Not a number above zero.
    #[error("mount option \"{option}={value}\" needs a number from 1 on")]
    Number {
        /// Its name.
        option: &'static str,
        /// The value.
        value: String,
    },
    /// Not a number of bytes.
    #[error("mount option \"cache={value}\" needs a number of bytes, or one with K, M, G or T behind it")]
    Size {
        /// The value.
        value: String,
    },
    /// None of the words that an option takes.
    #[error("mount option \"{option}={value}\" needs one of {words}")]
    Word {
        /// Its name.
        option: &'static str,
        /// The value.
        value: String,
        /// What it takes.
        words: &'static str,
    },
    /// Not the beginning of image names.
    #[error("mount option \"namespace={value}\" cannot begin image names: {reason}")]
    Namespace {
        /// The value.
        value: String,
        /// Why not.
        reason: &'static str,
    },
    /// mount(8) has a `group` of its own and passes it to nobody: it must not seem to work where mount(8) has no hand in it.
    #[error("mount option \"group={group}\" does not pass through mount(8); use gid={group}")]
    Group {
        /// The value.
        group: String,
    },
    /// It would let a file in an image give rights on the host.
    #[error(
        "mount option \"{option}\" is refused: set-user-ID programs and devices in images stay inert; leave it out"
    )]
    Unsafe {
        /// As given.
        option: String,
    },
    /// A quotation mark without its partner.
    #[error("mount options have an unfinished quotation: {options}; close it with \"")]
    Quotation {
        /// All of them.
        options: String,
    },
}

impl Options {
    /// Read what follows `-o`: options separated by commas, `"…"` around values that hold one, the last of two wins.
    pub fn parse(text: &str, unknown: Unknown) -> Result<Options, Error> {
        let mut options = Options::default();
        for option in split(text)? {
            if !options.take(&option)? && unknown == Unknown::Refuse {
                let nearest = nearest(option.split('=').next().unwrap_or_default());
                return Err(Error::Unknown { option, nearest });
            }
        }
        Ok(options)
    }

    /// Whether `option` is known.
    fn take(&mut self, option: &str) -> Result<bool, Error> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        match (name, value) {
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("noexec", None) => self.no_exec = true,
            ("exec", None) => self.no_exec = false,
            ("remount", None) => self.remount = true,
            ("suid" | "dev", None) => return Err(Error::Unsafe { option: option.to_owned() }),
            ("group", Some(group)) => return Err(Error::Group { group: group.to_owned() }),
            // mount(8)'s, and so not ours.
            (_, None) if IGNORED.contains(&name) => {}
            _ if IGNORED_PREFIXES.iter().any(|prefix| option.starts_with(prefix)) => {}
            _ => match OPTIONS.iter().find(|(known, ..)| *known == name) {
                Some((known, meaning, _)) => {
                    let value = value.filter(|value| !value.is_empty());
                    self.set(known, value.ok_or(Error::NoValue { option: known, value: meaning })?)?;
                }
                None => return Ok(false),
            },
        }
        Ok(true)
    }

    fn set(&mut self, option: &'static str, value: &str) -> Result<(), Error> {
        let path = || {
            let path = PathBuf::from(value);
            if path.is_absolute() { Ok(path) } else { Err(Error::Relative { option, path: value.to_owned() }) }
        };
        match option {
            "store" => self.store = path()?,
            "gid" => self.group = Some(value.to_owned()),
            "runc-root" => self.runc_roots.push(path()?),
            "crun-root" => self.crun_roots.push(path()?),
            "podman-root" => self.podman_root = Some(path()?),
            "podman-runroot" => self.podman_runroot = Some(path()?),
            "namespace" => {
                let invalid = |error: InvalidName| Error::Namespace { value: value.to_owned(), reason: error.reason };
                let name: ImageName = value.parse().map_err(invalid)?;
                if name.tag().is_some() {
                    return Err(Error::Namespace { value: value.to_owned(), reason: "a namespace has no tag" });
                }
                self.namespace = Some(name);
            }
            "log" => self.log = Some(path()?),
            "freeze-limit" => {
                let seconds = value.parse().map_err(|_| Error::Number { option, value: value.to_owned() })?;
                self.freeze_limit = Some(seconds);
            }
            "cache" => {
                self.cache = Some(size(value).ok_or_else(|| Error::Size { value: value.to_owned() })?);
            }
            "symlinks" => {
                self.symlinks_in_root = match value {
                    "raw" => false,
                    "in-root" => true,
                    _ => return Err(Error::Word { option, value: value.to_owned(), words: "raw, in-root" }),
                };
            }
            "jobs" => {
                let number = value.parse().map_err(|_| Error::Number { option, value: value.to_owned() })?;
                self.jobs = Some(number);
            }
            _ => unreachable!("every option of the table has its line here: a test sets them all"),
        }
        Ok(())
    }
}

/// A number of bytes, as `500M` or `20G`.
fn size(text: &str) -> Option<u64> {
    let shift = match text.chars().last()? {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => 0,
    };
    let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse::<u64>().ok().filter(|_| is_number)?.checked_mul(1 << shift)
}

/// At commas outside of quotation marks, which are dropped: as libmount writes them.
fn split(text: &str) -> Result<Vec<String>, Error> {
    let mut options = vec![String::new()];
    let mut quoted = false;
    for letter in text.chars() {
        match (letter, options.last_mut()) {
            ('"', _) => quoted = !quoted,
            (',', _) if !quoted => options.push(String::new()),
            (_, Some(option)) => option.push(letter),
            (_, None) => {}
        }
    }
    if quoted {
        return Err(Error::Quotation { options: text.to_owned() });
    }
    options.retain(|option| !option.is_empty());
    Ok(options)
}

/// The known option that takes the fewest changes to become `name`.
fn nearest(name: &str) -> &'static str {
    let ours = OPTIONS.iter().map(|(known, ..)| *known);
    let known = ours.chain(["ro", "noexec", "remount"]).chain(IGNORED);
    known.min_by_key(|known| distance(name, known)).unwrap_or("store")
}

/// Levenshtein's distance, in bytes.
fn distance(from: &str, to: &str) -> usize {
    let to = to.as_bytes();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (at, byte) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for column in 0..to.len() {
            let change = diagonal + usize::from(byte != to[column]);
            diagonal = row[column + 1];
            row[column + 1] = change.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests;
