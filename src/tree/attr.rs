//! What a node looks like from outside; ours, not fuser's.

use std::ffi::OsString;
use std::time::SystemTime;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A FIFO.
    Fifo,
}

/// How long the kernel may believe what it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Not at all: containers and jobs come and go.
    Volatile,
    /// For good: the parts of an image never change.
    Immutable,
}

/// stat(2), as far as this tree has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// The inode number; never used twice while the kernel knows it.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// The permission bits.
    pub mode: u16,
    /// Names in directories; 2 for a directory.
    pub nlink: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Length in bytes; 0 for a control file and for text whose length is not known before it is made.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// When it was made or last changed.
    pub time: SystemTime,
    /// How long this holds.
    pub lifetime: Lifetime,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The inode number, as a hint: the entry was not looked up.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: OsString,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The effective user.
    pub uid: u32,
    /// The effective group.
    pub gid: u32,
    /// The thread, in our pid namespace; 0 if it has no number there.
    pub tid: u32,
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Reading.
    pub read: bool,
    /// Writing.
    pub write: bool,
    /// O_NONBLOCK: writes return once the job is admitted.
    pub nonblock: bool,
}

/// What statfs(2) says: the store's file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Its size in bytes.
    pub bytes: u64,
    /// Bytes free for snapshots.
    pub free: u64,
    /// Its inodes.
    pub files: u64,
    /// Inodes free.
    pub files_free: u64,
}

/// What setattr wants to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    /// The length.
    pub size: Option<u64>,
    /// The permission bits.
    pub mode: bool,
    /// The owner or the group.
    pub owner: bool,
    /// A time.
    pub times: bool,
}

/// What poll(2) reports of an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// A read would not block.
    pub read: bool,
    /// A write would not block.
    pub write: bool,
}
