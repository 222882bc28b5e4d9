//! Numbers of the kernel's interface that the standard library has no name for.

/// errno(3): what an external program's failure is reported as.
pub const EREMOTEIO: i32 = libc::EREMOTEIO;

/// open(2): the file is emptied.
pub const O_TRUNC: i32 = libc::O_TRUNC;

/// open(2): the file must be new.
pub const O_EXCL: i32 = libc::O_EXCL;

/// open(2): every write goes to the end.
pub const O_APPEND: i32 = libc::O_APPEND;

/// open(2): the flag that asks a control file to return once the job is admitted.
pub const O_NONBLOCK: i32 = libc::O_NONBLOCK;
