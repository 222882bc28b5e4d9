//! `snapfs gc`: by itself where no daemon has the store, else through the tree of the daemon that has it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::api::{self, Collect};
use crate::cli::{self, GcArgs};
use crate::daemon::{Error, mounted};
use crate::progress::Progress;
use crate::store::{self, Store};
use crate::sys::clock::Clock;

/// Do it and say what was done.
#[allow(clippy::print_stdout, reason = "it is what the command is for")]
pub(super) fn run(args: &GcArgs) -> Result<ExitCode, Error> {
    let how = if args.dry_run { Collect::DryRun } else { Collect::Now };
    let said = match Store::open_existing(&args.store.store) {
        Ok(store) => {
            let now = match cli::source_date_epoch().map_err(Error::Epoch)? {
                None => Clock::system(),
                Some(seconds) => Clock::fixed(seconds).ok_or(Error::Epoch(seconds.to_string()))?,
            }
            .now();
            api::collect(&store, now, how, &Progress::new()).map_err(|error| Error::Asked(error.message))?
        }
        Err(store::Error::Locked { pid: Some(pid), place }) => ask(&tree_of(pid, &place)?, how)?,
        Err(error) => return Err(error.into()),
    };
    println!("{}", said.trim_end());
    Ok(ExitCode::SUCCESS)
}

/// Where the daemon `pid` shows its tree.
fn tree_of(pid: u32, place: &Path) -> Result<PathBuf, Error> {
    let line = format!("pid {pid}");
    let is_its = |dir: &PathBuf| {
        fs::read_to_string(dir.join("health")).is_ok_and(|health| health.lines().any(|found| found == line))
    };
    mounted()?.into_iter().find(is_its).ok_or_else(|| {
        Error::Asked(format!(
            "the store {} is in use by the process {pid}, whose mount cannot be found; stop that daemon first",
            place.display()
        ))
    })
}

/// Write to the control file, and read from the same descriptor what became of it.
fn ask(dir: &Path, how: Collect) -> Result<String, Error> {
    let path = dir.join("gc");
    let failed = |error: std::io::Error| Error::Asked(format!("cannot ask the daemon at {}: {error}", path.display()));
    let mut file = File::options().read(true).write(true).open(&path).map_err(failed)?;
    let line = if how == Collect::DryRun { "dry-run\n" } else { "1\n" };
    let written = file.write(line.as_bytes());
    let mut said = String::new();
    file.read_to_string(&mut said).map_err(failed)?;
    // `job=N state=S WHAT`
    let what = said.splitn(3, ' ').nth(2).unwrap_or(&said).to_owned();
    match written {
        Ok(_) => Ok(what),
        Err(_) => Err(Error::Asked(what.trim_start_matches("error: ").trim_end().to_owned())),
    }
}
