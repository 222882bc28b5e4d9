//! The two command lines: `snapfs`, and `mount.snapfs` as mount(8) calls it. Parsing only; `daemon` acts.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{DEFAULT_STORE, OPTIONS, Unknown};

/// mount(8): success.
pub const EXIT_SUCCESS: u8 = 0;
/// mount(8): incorrect invocation or permissions.
pub const EXIT_USAGE: u8 = 1;
/// mount(8): mount failure.
pub const EXIT_FAILURE: u8 = 32;

/// Containers as directories, snapshots by writing a name.
#[derive(Debug, Parser, PartialEq, Eq)]
#[command(name = "snapfs", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand, PartialEq, Eq)]
pub enum Command {
    /// Mount the tree on DIR and serve it
    #[command(after_help = mount_options())]
    Mount(MountArgs),
    /// Remove names that the store's retention policy lets go, then what no image needs
    Gc(GcArgs),
    /// List the jobs of a daemon, or follow them until they end
    Jobs(JobsArgs),
    /// Check every image in the store against its digests
    Fsck(StoreArgs),
    /// Thaw containers that a daemon left frozen
    Thaw,
    /// Print the version
    Version,
}

/// `snapfs mount`
#[derive(Debug, Args, PartialEq, Eq, Default)]
pub struct MountArgs {
    /// Stay in the foreground and log to the terminal
    #[arg(short, long)]
    pub foreground: bool,
    /// Log more; twice: the kernel's requests too
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// What mountinfo and df show as the source; any word
    pub source: String,
    /// The directory to mount on
    pub dir: PathBuf,
    /// What to do with unknown options.
    #[arg(skip = Sloppy::No)]
    pub sloppy: Sloppy,
}

/// Whether unknown mount options are forgiven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sloppy {
    /// They are errors.
    #[default]
    No,
    /// mount(8)'s `-s`.
    Yes,
}

impl From<Sloppy> for Unknown {
    fn from(sloppy: Sloppy) -> Unknown {
        match sloppy {
            Sloppy::No => Unknown::Refuse,
            Sloppy::Yes => Unknown::Ignore,
        }
    }
}

/// `snapfs gc`
#[derive(Debug, Args, PartialEq, Eq)]
pub struct GcArgs {
    /// Where it is done.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Say what would be removed, and why, and remove nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// `snapfs jobs`
#[derive(Debug, Args, PartialEq, Eq)]
pub struct JobsArgs {
    /// Where the tree is mounted; not needed if that is in one place only
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Go on until the jobs have ended: with a bar on a terminal, else a line for each step
    #[arg(short, long)]
    pub follow: bool,
    /// Only these jobs; "last" is the newest
    #[arg(value_name = "JOB")]
    pub jobs: Vec<String>,
}

/// `snapfs fsck`
#[derive(Debug, Args, PartialEq, Eq)]
pub struct StoreArgs {
    /// The store
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STORE)]
    pub store: PathBuf,
}

impl Cli {
    /// Read the process's arguments. Where there is nothing to do, for they are wrong or ask for help, that was said;
    /// the exit code comes back.
    pub fn from_args() -> Result<Cli, u8> {
        Cli::try_parse().map_err(|error| {
            let _ = error.print();
            // clap would exit with 2, which mount(8) reserves for system errors.
            if error.use_stderr() { EXIT_USAGE } else { EXIT_SUCCESS }
        })
    }
}

fn mount_options() -> String {
    let line = |(name, value, meaning): &(&str, &str, &str)| format!("  {:<22} {meaning}\n", format!("{name}={value}"));
    let lines: String = OPTIONS.iter().map(line).collect();
    format!("Mount options:\n{lines}  {:<22} nothing can be written, control files included", "ro")
}

/// `mount.snapfs SOURCE DIR [-sfnv] [-o OPTIONS] [-t TYPE] [-N NAMESPACE]`: mount(8), "EXTERNAL HELPERS".
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Helper {
    /// What to mount and where.
    pub mount: MountArgs,
    /// `-f`: do all but the mount itself.
    pub fake: bool,
}

/// The helper was not called as mount(8) calls it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelperError {
    /// Source and directory are both needed, and nothing else without a dash.
    #[error("expected a source and a directory; usage: mount.snapfs SOURCE DIR [-sfnv] [-o OPTIONS]")]
    Operands,
    /// No such flag.
    #[error("unknown flag -{0}; usage: mount.snapfs SOURCE DIR [-sfnv] [-o OPTIONS]")]
    Flag(char),
    /// The flag needs a value.
    #[error("flag -{0} needs a value; usage: mount.snapfs SOURCE DIR [-sfnv] [-o OPTIONS]")]
    Value(char),
    /// Options and sources are text.
    #[error("\"{0}\" is not valid UTF-8; only the directory may be")]
    Encoding(String),
    /// A daemon serves the namespace it lives in.
    #[error("mounting in another namespace is not supported; use `nsenter --mount={0} mount …`")]
    Namespace(String),
}

impl Helper {
    /// Read the arguments, the program's name not among them.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Helper, HelperError> {
        let mut helper = Helper::default();
        let mut operands = Vec::new();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            match arg.to_str().and_then(|arg| arg.strip_prefix('-')).filter(|flags| !flags.is_empty()) {
                Some(flags) => helper.flags(flags, &mut args)?,
                None => operands.push(arg),
            }
        }
        let [source, dir] = <[OsString; 2]>::try_from(operands).map_err(|_| HelperError::Operands)?;
        helper.mount.source = text(&source)?;
        helper.mount.dir = PathBuf::from(dir);
        Ok(helper)
    }

    fn flags(&mut self, flags: &str, args: &mut impl Iterator<Item = OsString>) -> Result<(), HelperError> {
        for (at, flag) in flags.char_indices() {
            match flag {
                's' => self.mount.sloppy = Sloppy::Yes,
                'f' => self.fake = true,
                'n' => {} // there is no mtab
                'v' => self.mount.verbose += 1,
                'o' | 't' | 'N' => {
                    let attached = &flags[at + 1..];
                    let value = match attached {
                        "" => text(&args.next().ok_or(HelperError::Value(flag))?)?,
                        attached => attached.to_owned(),
                    };
                    match flag {
                        'o' => self.mount.options.push(value),
                        'N' => return Err(HelperError::Namespace(value)),
                        _ => {} // the type: snapfs or fuse.snapfs, or we would not have been called
                    }
                    return Ok(());
                }
                _ => return Err(HelperError::Flag(flag)),
            }
        }
        Ok(())
    }
}

fn text(arg: &OsStr) -> Result<String, HelperError> {
    arg.to_str().map(str::to_owned).ok_or_else(|| HelperError::Encoding(arg.to_string_lossy().into_owned()))
}

/// Whether stderr is the journal's: systemd.exec(5), `$JOURNAL_STREAM`.
pub fn logs_to_journal() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some()
}

/// `SOURCE_DATE_EPOCH`, in seconds (reproducible-builds.org): the time that everything snapfs makes then bears.
pub fn source_date_epoch() -> Result<Option<i64>, String> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(None) };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    seconds.map(Some).ok_or_else(|| text.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cli(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    fn helper(line: &str) -> Result<Helper, HelperError> {
        Helper::parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn options_may_stand_anywhere() {
        let expected = Command::Mount(MountArgs {
            foreground: true,
            verbose: 2,
            options: vec!["store=/a,ro".into(), "jobs=2".into()],
            source: "any".into(),
            dir: "/mnt".into(),
            sloppy: Sloppy::No,
        });
        assert_eq!(cli("snapfs mount -f -vv any /mnt -o store=/a,ro -o jobs=2").unwrap(), expected);
        assert_eq!(cli("snapfs mount -o store=/a,ro any -vv /mnt -o jobs=2 --foreground").unwrap(), expected);
        assert!(cli("snapfs mount any").is_err());
    }

    #[test]
    fn the_other_commands() {
        assert_eq!(
            cli("snapfs gc -n").unwrap(),
            Command::Gc(GcArgs { store: StoreArgs { store: "/var/lib/snapfs".into() }, dry_run: true })
        );
        let jobs = JobsArgs { dir: Some("/snap".into()), follow: true, jobs: vec!["7".into()] };
        assert_eq!(cli("snapfs jobs --dir /snap -f 7").unwrap(), Command::Jobs(jobs));
        assert_eq!(cli("snapfs fsck --store /s").unwrap(), Command::Fsck(StoreArgs { store: "/s".into() }));
        assert_eq!(cli("snapfs thaw").unwrap(), Command::Thaw);
        assert_eq!(cli("snapfs version").unwrap(), Command::Version);
    }

    #[test]
    fn help_shows_every_mount_option() {
        let help = cli("snapfs mount --help").unwrap_err().to_string();
        for (name, ..) in OPTIONS {
            assert!(help.contains(&format!("{name}=")), "{name} is not in:\n{help}");
        }
    }

    #[test]
    fn the_helper_is_called_as_mount_calls_it() {
        let given = helper("snapfs /snap -s -f -n -v -o rw,store=/a -t fuse.snapfs").unwrap();
        assert!(given.fake);
        let mount = given.mount;
        assert_eq!((mount.source.as_str(), mount.dir), ("snapfs", PathBuf::from("/snap")));
        assert_eq!((mount.sloppy, mount.verbose, mount.foreground), (Sloppy::Yes, 1, false));
        assert_eq!(mount.options, ["rw,store=/a"]);
        assert_eq!(helper("none /snap -sno rw").unwrap().mount.options, ["rw"]);
        assert_eq!(helper("none /snap -orw").unwrap().mount.options, ["rw"]);
    }

    #[test]
    fn the_helper_refuses_what_it_does_not_understand() {
        assert_eq!(helper("snapfs"), Err(HelperError::Operands));
        assert_eq!(helper("a b c"), Err(HelperError::Operands));
        assert_eq!(helper("a b -x"), Err(HelperError::Flag('x')));
        assert_eq!(helper("a b -o"), Err(HelperError::Value('o')));
        assert_eq!(helper("a b -N /proc/1/ns/mnt"), Err(HelperError::Namespace("/proc/1/ns/mnt".into())));
    }
}
