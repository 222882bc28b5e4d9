//! `snapfs`: the daemon and its command line.

use std::process::ExitCode;

use clap::Parser;
use snapfs::cli::{Cli, EXIT_USAGE};
use snapfs::daemon;

fn main() -> ExitCode {
    // Under its other name this program is the guard, and does not return.
    snapfs::guard::take_over();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // clap would exit with 2, which mount(8) reserves for system errors.
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    daemon::run(cli).unwrap_or_else(|error| {
        eprintln!("snapfs: {error}");
        ExitCode::from(error.exit_code())
    })
}
