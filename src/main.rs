//! `snapfs`: the daemon and its command line.

use std::process::ExitCode;

use snapfs::cli::Cli;
use snapfs::daemon;

fn main() -> ExitCode {
    // Under its other name this program is the guard, and does not return.
    snapfs::guard::take_over();
    let cli = match Cli::from_args() {
        Ok(cli) => cli,
        Err(code) => return code.into(),
    };
    daemon::run(cli).unwrap_or_else(|error| {
        eprintln!("snapfs: {}", daemon::sentence(&error));
        ExitCode::from(error.exit_code())
    })
}
