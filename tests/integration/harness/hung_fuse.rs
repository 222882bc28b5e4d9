//! A FUSE file system whose server takes requests and answers none: whoever looks into it sleeps uninterruptibly.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// `FUSE_INIT` of linux/fuse.h.
const INIT: u32 = 26;

#[derive(Debug)]
pub struct HungFuse {
    directory: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl HungFuse {
    /// Mount it on an empty directory.
    pub fn mount(directory: &Path) -> HungFuse {
        let mut device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        mount(Some("hung"), directory, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
        let server = thread::spawn(move || {
            let mut request = vec![0; 1024 * 1024];
            // An error is the end: the file system was unmounted.
            while let Ok(length) = device.read(&mut request) {
                let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
                if length >= 16 && word(4) == INIT {
                    device.write_all(&answer_to_init(&request[8..16])).unwrap();
                }
            }
        });
        HungFuse { directory: directory.to_owned(), server: Some(server) }
    }

    /// A file in it, which nobody will ever see.
    pub fn file(&self) -> PathBuf {
        self.directory.join("file")
    }
}

/// `struct fuse_out_header` and `struct fuse_init_out`.
fn answer_to_init(unique: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; 16 + 64];
    answer[0..4].copy_from_slice(&80_u32.to_le_bytes());
    answer[8..16].copy_from_slice(unique);
    answer[16..20].copy_from_slice(&7_u32.to_le_bytes());
    answer[20..24].copy_from_slice(&31_u32.to_le_bytes());
    answer[36..40].copy_from_slice(&131_072_u32.to_le_bytes());
    answer
}

impl Drop for HungFuse {
    fn drop(&mut self) {
        // By force: it ends the connection, and with it the requests that wait.
        let _ = umount2(&self.directory, MntFlags::MNT_FORCE);
        umount2(&self.directory, MntFlags::MNT_DETACH).ok();
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}
