//! `mount.snapfs`: what mount(8) calls for `mount -t snapfs`. The daemon it leaves behind is the library's, so that
//! nothing has to be searched for.

use std::process::ExitCode;

use snapfs::cli::Helper;
use snapfs::daemon;

fn main() -> ExitCode {
    // Under its other name this program is the guard, and does not return.
    snapfs::guard::take_over();
    let done = Helper::parse(std::env::args_os().skip(1)).map_err(daemon::Error::from).and_then(daemon::run_helper);
    done.unwrap_or_else(|error| {
        eprintln!("mount.snapfs: {}", daemon::sentence(&error));
        ExitCode::from(error.exit_code())
    })
}
