//! Control files: a written line becomes a command, and the write's answer is the command's.

use crate::api::{Error, ErrorKind, Verb};
use crate::tree::attr::Caller;
use crate::tree::file::{ContainerFile, ImageFile, RootFile};
use crate::tree::handle::{Command, Conversation, Handle, Outcome, Talk};
use crate::tree::node::Node;
use crate::tree::{Reply, Tree, wait_for};

/// The longest command.
const LONGEST: usize = 4096;

/// `/README`.
pub const README: &str = "\
snapfs: containers and images as files

  ls containers; cat containers/NAME/status     the containers of this host: created, running, paused, stopped
  cat containers/NAME/changes              what it changed: A added, C changed, D deleted
  echo img > containers/NAME/commit        snapshot its file system into the image img; returns when it is durable
  echo ck > containers/NAME/checkpoint     its processes too, for podman container restore; see checkpointable
  cat containers/NAME/last_error           why the last request failed, and what to do

  ls images/img images/img/rootfs          the image: an OCI image layout, read with cat, ls and cp; and its files
  skopeo copy oci:/snap/images/img docker://registry.example/team/web:1
  mv images/img images/b; rmdir images/b; echo b:1 > images/img/tag     rename (replaces b); delete; one more name
  echo web2 > images/ck/restore            a container of it: a checkpoint goes on where it stood, a commit starts anew
  cp images/img/oci.tar img.tar            the image as one archive, for podman load, docker load, skopeo
  cat img.tar > import                     what podman save, docker save and skopeo wrote, as images
  echo prod > images/img/labels/env        a label on the name; ls query/'labels.env==prod'/ finds it
  echo 'web-* keep=24' >> retention        which names may go: echo dry-run > gc; cat gc; cat events: what happens
  echo 'img async' > containers/NAME/commit    do not wait; follow jobs/last/state, cat jobs/last/wait
  echo 1 > jobs/N/cancel                   cancel a job: it leaves nothing behind

A command is one line, \"NAME [OPTION...]\", values quoted as in a shell:
  message= author= description= label.KEY= annotation.KEY= change='USER web' volumes=skip|declare|include base=auto|image|IMAGE
  squash=none|snapshots|all pause=seal|full|none|stop compression=zstd[:LEVEL]|zstd:chunked|gzip|none create async
A name with a tag holds a colon, at which skopeo and umoci split paths: use images/img%3Atag there.
Tools that read no zstd, such as umoci 0.4, want compression=gzip; podman pulls compression=zstd:chunked file by file.
";

impl Tree {
    /// A write to a control file. The answer comes when the command has been carried out, unless it is asynchronous.
    ///
    /// The offset matters to archives and to files that keep what is written.
    pub fn write(
        &self,
        fh: u64,
        offset: u64,
        bytes: &[u8],
        nonblock: bool,
        caller: &Caller,
    ) -> Result<Reply<u32>, Error> {
        let written = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let conversation = match self.handle(fh)? {
            Handle::Control(conversation) => conversation,
            Handle::Import(receiving) => return self.write_archive(&receiving, offset, bytes, caller),
            Handle::Written(open) => {
                return self.write_written(open, offset, bytes, caller);
            }
            _ => return Err(Error::new(ErrorKind::ReadOnly, "only control files can be written")),
        };
        let refused = |error| self.refused(&conversation.node, caller, bytes, error);
        self.check_writer(&conversation, caller).map_err(refused)?;
        let line = line(bytes);
        let mut talk = conversation.talk.lock();
        talk.answer.forget();
        let sent = match &line {
            Ok("") => return Ok(Reply::Now(written)),
            Ok(line) => line.as_bytes(),
            Err(_) => bytes,
        };
        if let Some(last) = &talk.last {
            if last.sent == sent && last.abandoned && last.outcome.end().is_none() {
                return Err(Error::new(ErrorKind::Busy, "the command goes on as a job; its writer was told to end"));
            }
            if last.sent == sent {
                return answer(last.outcome.clone(), written);
            }
            if last.outcome.end().is_none() {
                let running = String::from_utf8_lossy(&last.sent);
                let busy = format!("{running:?} is still being carried out on this descriptor; open the file anew");
                return Err(refused(Error::new(ErrorKind::Busy, busy)));
            }
        }
        let outcome = match line {
            Ok(line) => self.carry_out(&conversation.node, line, nonblock, caller),
            Err(error) => Outcome::Settled(Err(refused(error))),
        };
        talk.last = Some(Command { sent: sent.to_vec(), outcome: outcome.clone(), abandoned: false });
        answer(outcome, written)
    }

    /// The writer was told to end while it waited. Its job goes on.
    pub fn abandon(&self, fh: u64) {
        if let Ok(Handle::Control(conversation)) = self.handle(fh)
            && let Some(last) = &mut conversation.talk.lock().last
        {
            last.abandoned = true;
        }
    }

    /// Who opened the file may write to it, and nobody else through the descriptor: a program with more rights than its
    /// user must not be made to write what the user chose. Nor may a process inside a container.
    fn check_writer(&self, conversation: &Conversation, caller: &Caller) -> Result<(), Error> {
        self.check_opener(&conversation.opener, caller)?;
        self.api.authorise(caller.tid)
    }

    pub(super) fn check_opener(&self, opener: &Caller, caller: &Caller) -> Result<(), Error> {
        if caller.uid == opener.uid {
            return Ok(());
        }
        let message = format!(
            "user {} opened the control file, and user {} writes to it; open it as the user who writes",
            opener.uid, caller.uid
        );
        Err(Error::new(ErrorKind::Denied, message))
    }

    fn refused(&self, node: &Node, caller: &Caller, bytes: &[u8], error: Error) -> Error {
        if let Some((subject, verb)) = subject(node) {
            let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]);
            self.api.record_refusal(&subject, &format!("{verb} {}", shown.escape_debug()), caller.uid, &error);
        }
        error
    }

    fn carry_out(&self, node: &Node, line: &str, nonblock: bool, caller: &Caller) -> Outcome {
        let settled = match node {
            Node::ContainerFile(key, file @ (ContainerFile::Commit | ContainerFile::Checkpoint)) => {
                let verb = if *file == ContainerFile::Commit { Verb::Commit } else { Verb::Checkpoint };
                match self.api.submit(key, verb, line, caller.uid) {
                    Ok((job, detach)) => return Outcome::Job { job, detached: nonblock || detach },
                    Err(error) => Err(error),
                }
            }
            Node::ImageFile(key, ImageFile::Restore) => match self.api.submit_restore(key, line, caller.uid) {
                Ok((job, detach)) => return Outcome::Job { job, detached: nonblock || detach },
                Err(error) => Err(error),
            },
            Node::ImageFile(key, ImageFile::Tag) => {
                match self.api.tag_image(key.clone(), line.to_owned(), caller.uid) {
                    Ok(coming) => return Outcome::Coming(coming),
                    Err(error) => Err(error),
                }
            }
            Node::RootFile(RootFile::Gc) => match self.api.submit_gc(line, caller.uid) {
                Ok(job) => return Outcome::Job { job, detached: nonblock },
                Err(error) => Err(error),
            },
            Node::JobFile(id, _) => self.api.cancel(*id, line),
            _ => Err(Error::new(ErrorKind::ReadOnly, "only control files can be written")),
        };
        Outcome::Settled(settled)
    }

    /// What a read of a control file gives: the answer on this descriptor, else the last result.
    pub(super) fn answer(&self, conversation: &Conversation, offset: u64, size: u32) -> Result<Vec<u8>, Error> {
        let Talk { last, answer } = &mut *conversation.talk.lock();
        answer.read(offset, size, || match last {
            Some(last) => Ok(last.outcome.text().into_bytes()),
            None => self.text(&conversation.node),
        })
    }
}

fn subject(node: &Node) -> Option<(String, &'static str)> {
    match node {
        Node::ContainerFile(key, file) => Some((key.to_string(), file.name())),
        Node::ImageFile(key, file) => Some((key.subject(), file.name())),
        _ => None,
    }
}

fn answer(outcome: Outcome, written: u32) -> Result<Reply<u32>, Error> {
    match &outcome {
        Outcome::Settled(Err(error)) => Err(error.clone()),
        Outcome::Settled(Ok(_)) | Outcome::Job { detached: true, .. } => Ok(Reply::Now(written)),
        Outcome::Coming(_) | Outcome::Job { .. } => wait_for(move || outcome.end().map(|end| end.map(|_| written))),
    }
}

/// The one command of a write, without its newline; empty if there is none.
fn line(bytes: &[u8]) -> Result<&str, Error> {
    let invalid = |message: &str| Err(Error::new(ErrorKind::Invalid, message));
    if bytes.len() > LONGEST {
        return invalid("a command has 4096 bytes at most");
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return invalid("a command is UTF-8 text") };
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.trim().is_empty() {
        return Ok("");
    }
    if text.contains('\n') {
        return invalid("one write is one command; write each line by itself");
    }
    if text.chars().any(|c| c.is_control() && c != '\t') {
        return invalid("a command holds no control characters");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_write_is_one_line() {
        assert_eq!(line(b"img\n").unwrap(), "img");
        assert_eq!(line(b"img").unwrap(), "img");
        assert_eq!(line(b"img\r\n").unwrap(), "img");
        for empty in [&b""[..], b"\n", b"  \n", b"\t"] {
            assert_eq!(line(empty).unwrap(), "");
        }
        for refused in [&b"a\nb\n"[..], b"a\n\n", b"a\0", b"\xff", b"a\x1b[2J", &[b'x'; 4097]] {
            assert_eq!(line(refused).unwrap_err().kind, ErrorKind::Invalid, "{refused:?}");
        }
    }

    #[test]
    fn the_readme_fits_one_screen() {
        assert!(README.lines().count() <= 24);
        assert!(README.lines().all(|line| line.len() <= 140));
    }
}
