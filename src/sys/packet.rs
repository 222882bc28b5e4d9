//! A pair of connected sockets that carry whole messages, and open files with them: unix(7), `SOCK_SEQPACKET` and
//! `SCM_RIGHTS`.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// Files that one message can carry.
pub const MOST_FILES: usize = 3;

/// One end of the pair. It is closed in a program that this one starts, unless it is handed over on purpose.
#[derive(Debug)]
pub struct Socket(OwnedFd);

/// What [`Socket::receive`] found.
#[derive(Debug)]
pub enum Received {
    /// A message of that many bytes, and the files that came with it, in order.
    Message(usize, [Option<OwnedFd>; MOST_FILES]),
    /// The other end is closed by all who had it.
    Closed,
}

/// What [`Socket::wait`] waited for; all can be true.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    /// [`Socket::receive`] will not block.
    pub socket: bool,
    /// The other file has something to read: for a pidfd, that its process has ended.
    pub other: bool,
}

impl Socket {
    /// Two connected ends.
    ///
    /// # Errors
    /// What socketpair(2) answers: no file descriptors, no memory.
    pub fn pair() -> io::Result<(Socket, Socket)> {
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Socket(a), Socket(b)))
    }

    /// Send one message, all of it or nothing, without waiting.
    ///
    /// # Errors
    /// `BrokenPipe` if the other end is closed, `WouldBlock` if it does not receive.
    pub fn send(&self, message: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::io::retry_on_intr(|| rustix::net::sendmsg(&self.0, &[IoSlice::new(message)], &mut control, flags))?;
        Ok(())
    }

    /// Receive the next message into `buffer`, which must have room for it. Waits for it.
    ///
    /// # Errors
    /// `InvalidData` if the message or its files were cut short; what recvmsg(2) answers.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)
        });
        let message = match message {
            Ok(message) => message,
            Err(rustix::io::Errno::CONNRESET) => return Ok(Received::Closed),
            Err(errno) => return Err(errno.into()),
        };
        let mut files = [const { None }; MOST_FILES];
        let received = control
            .drain()
            .filter_map(|part| if let RecvAncillaryMessage::ScmRights(files) = part { Some(files) } else { None });
        for (slot, file) in files.iter_mut().zip(received.flatten()) {
            *slot = Some(file);
        }
        if message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // No message of ours is empty, so that nothing is the end.
        Ok(if message.bytes == 0 { Received::Closed } else { Received::Message(message.bytes, files) })
    }

    /// Wait until there is something to receive, or to read from `other`, or `timeout` is over; without one, for ever.
    ///
    /// # Errors
    /// What poll(2) answers, save for EINTR, which is an early end of the wait.
    pub fn wait(&self, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<Ready> {
        let mut files = [
            PollFd::new(&self.0, PollFlags::IN),
            PollFd::from_borrowed_fd(other.unwrap_or(self.0.as_fd()), PollFlags::IN),
        ];
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        match rustix::event::poll(&mut files, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [socket, second] = files.map(|file| !file.revents().is_empty());
        Ok(Ready { socket, other: other.is_some() && second })
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> OwnedFd {
        socket.0
    }
}

impl TryFrom<OwnedFd> for Socket {
    type Error = io::Error;

    /// An end that was handed to this process.
    fn try_from(fd: OwnedFd) -> io::Result<Socket> {
        if rustix::net::sockopt::socket_type(&fd)? != SocketType::SEQPACKET {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Socket(fd))
    }
}

#[cfg(test)]
mod tests {
    use super::{Received, Socket};
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::time::Duration;

    #[test]
    fn a_message_carries_a_file() {
        let (a, b) = Socket::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello").unwrap();
        a.send(b"take", &[file.as_fd()]).unwrap();
        let mut buffer = [0; 16];
        let Received::Message(4, [Some(copy), None, None]) = b.receive(&mut buffer).unwrap() else {
            panic!("no message")
        };
        assert_eq!(&buffer[..4], b"take");
        let mut copy = std::fs::File::from(copy);
        copy.rewind().unwrap();
        let mut text = String::new();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn the_end_is_told_from_silence() {
        let (a, b) = Socket::pair().unwrap();
        assert!(!b.wait(None, Some(Duration::from_millis(1))).unwrap().socket);
        drop(a);
        assert!(b.wait(None, Some(Duration::from_millis(100))).unwrap().socket);
        assert!(matches!(b.receive(&mut [0; 16]).unwrap(), Received::Closed));
        assert_eq!(b.send(b"x", &[]).unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    }
}
