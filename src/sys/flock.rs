//! The lock that ends with its holder, however that ends: flock(2).

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Lock a file or directory against everyone else who does, for as long as the value returned lives. Waits for it.
///
/// # Errors
/// What open(2) and flock(2) answer.
pub fn lock(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
    Ok(file)
}
