//! The tables of files: each file's name and what it is. `docs/interface.md` is held against them by a test.

use crate::api::{Digest, Fact};

/// Declares the files of one directory: the enum, its names and its table.
macro_rules! files {
    ($(#[$doc:meta])* $name:ident { $($variant:ident $file:literal $what:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(missing_docs)] // The table below says what each is.
        pub enum $name { $($variant,)* }

        impl $name {
            /// Every file, in the order of the listing: name and meaning.
            pub const TABLE: &'static [($name, &'static str, &'static str)] =
                &[$(($name::$variant, $file, $what),)*];

            /// The file's name.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $file,)* }
            }

            /// The file of that name.
            pub fn of(name: &str) -> Option<$name> {
                match name { $($file => Some($name::$variant),)* _ => None }
            }
        }
    };
}

files!(
    /// Files of the mount point.
    RootFile {
        Readme "README" "how to use this tree, one screen",
        Version "version" "the version of snapfs",
        Health "health" "the daemon's state, one \"key value\" a line",
        Metrics "metrics" "numbers, in Prometheus' text format",
        Events "events" "what happens from now on, a line of JSON each; reading waits for it",
        Retention "retention" "which image names may go: lines of PATTERN keep=NUMBER within=TIME",
        Gc "gc" "write 1: apply retention, remove what no image needs; write dry-run: say what would go",
        LastError "last_error" "the last failed request on retention and gc, in full",
        Import "import" "write the bytes of an OCI or docker archive: its images; read: the last result",
    }
);

files!(
    /// Files of `containers/NAME/`.
    ContainerFile {
        Id "id" "the id at the engine",
        Name "name" "the name at the engine",
        Engine "engine" "the engine that has it: runc, crun or podman",
        Runtime "runtime" "the OCI runtime, empty if unknown",
        Status "status" "creating, created, running, paused or stopped",
        Pid "pid" "the first process's pid on the host, 0 while there is none",
        Image "image" "the image it was started from, empty if the engine knows none",
        Created "created" "when it was created, RFC 3339",
        Spec "spec.json" "the OCI runtime-spec configuration, byte for byte",
        Changes "changes" "what it changed in its image, now: \"A|C|D path\" lines",
        Commit "commit" "write \"NAME [OPTION...]\": snapshot the file system",
        Checkpoint "checkpoint" "write \"NAME [OPTION...]\": snapshot the processes too",
        Checkpointable "checkpointable" "\"yes\", or why it could not be checkpointed, a reason and its remedy a line",
        LastError "last_error" "the last failed request on this container, in full",
    }
);

files!(
    /// Files of `images/NAME/`.
    ImageFile {
        Layout "oci-layout" "image-spec's layout marker",
        Index "index.json" "the layout's index: this image's manifest alone",
        Manifest "manifest.json" "the manifest, byte for byte",
        Config "config.json" "the image config, byte for byte",
        Digest "digest" "the manifest's digest",
        Size "size" "bytes of all blobs, each counted once",
        UnpackedSize "unpacked_size" "bytes of all layers when they are unpacked",
        UniqueSize "unique_size" "bytes of the blobs that no other name needs: what rmdir frees",
        Created "created" "when the image was made, RFC 3339",
        Parent "parent" "what it was made on: the digest of an earlier snapshot, or the name of an image; empty if unknown",
        Kind "kind" "commit, checkpoint or image",
        Archive "oci.tar" "the whole image as one archive, for skopeo, podman load and docker load",
        Restore "restore" "write \"CONTAINER-NAME [OPTION...]\": make a container of it",
        Tag "tag" "write \"NAME\": one more name for this image",
        LastError "last_error" "the last failed request on this image, in full",
    }
);

files!(
    /// Files of `images/NAME/layers/N/`.
    LayerFile {
        Digest "digest" "the blob's digest",
        DiffId "diff_id" "SHA-256 of the uncompressed tar",
        Size "size" "the blob's length in bytes",
        MediaType "media_type" "the blob's media type",
        CreatedBy "created_by" "the command that made the layer, from the history",
    }
);

files!(
    /// Files of `jobs/N/`.
    JobFile {
        Command "command" "the file that was written to, and the line",
        State "state" "queued, running, done, failed or cancelled",
        Progress "progress" "phase, bytes and files so far and in all, bytes a second, seconds so far and left",
        Log "log" "what was done that the command did not say, a line each",
        Error "error" "why it failed, empty if it did not",
        Result "result" "what it made: the manifest's digest, or the container's name",
        Cancel "cancel" "write 1: cancel the job",
        Wait "wait" "reading blocks until the job has ended, then gives its state",
    }
);

impl RootFile {
    /// Whether a write is a command.
    pub fn is_control(self) -> bool {
        matches!(self, RootFile::Import | RootFile::Gc)
    }
}

impl ContainerFile {
    /// Whether a write is a command.
    pub fn is_control(self) -> bool {
        matches!(self, ContainerFile::Commit | ContainerFile::Checkpoint)
    }

    /// The fact that the file shows, if it shows one.
    pub(super) fn fact(self) -> Option<Fact> {
        Some(match self {
            ContainerFile::Id => Fact::Id,
            ContainerFile::Name => Fact::Name,
            ContainerFile::Engine => Fact::Engine,
            ContainerFile::Runtime => Fact::Runtime,
            ContainerFile::Status => Fact::Status,
            ContainerFile::Pid => Fact::Pid,
            ContainerFile::Image => Fact::Image,
            ContainerFile::Created => Fact::Created,
            ContainerFile::Spec
            | ContainerFile::Changes
            | ContainerFile::Commit
            | ContainerFile::Checkpoint
            | ContainerFile::Checkpointable
            | ContainerFile::LastError => return None,
        })
    }
}

impl ImageFile {
    /// Whether a write is a command.
    pub fn is_control(self) -> bool {
        matches!(self, ImageFile::Restore | ImageFile::Tag)
    }

    /// Whether the file speaks of the name, which can change, and not of the image, which cannot.
    pub(super) fn follows_the_name(self) -> bool {
        matches!(self, ImageFile::LastError | ImageFile::UniqueSize)
    }
}

impl JobFile {
    /// Whether a write is a command.
    pub fn is_control(self) -> bool {
        self == JobFile::Cancel
    }
}

/// The longest file name (`NAME_MAX`).
const LONGEST_NAME: usize = 255;

/// Make any text a file name: `/`, control bytes, a leading dot and `%` itself are percent-encoded, reversibly. A name
/// that is then too long is cut, and ends in `~` and its digest, so that it stays unique.
pub(super) fn encode_name(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        let first_dot = at == 0 && c == '.';
        if c == '/' || c == '%' || c.is_control() || first_dot {
            let mut bytes = [0; 4];
            name.extend(c.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02X}")));
        } else {
            name.push(c);
        }
    }
    if name.len() > LONGEST_NAME {
        let digest = Digest::of(text.as_bytes()).hex();
        while name.len() > LONGEST_NAME - 17 {
            name.pop();
        }
        name = format!("{name}~{}", &digest[..16]);
    }
    if name.is_empty() { "%".to_owned() } else { name }
}

/// The text that [`encode_name`] made a name of; `None` if it made none of them so.
pub(super) fn decode_name(name: &str) -> Option<String> {
    if name == "%" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_reversibly_and_are_file_names() {
        assert_eq!(encode_name("org.example/key"), "org.example%2Fkey");
        assert_eq!(encode_name("a%b\n"), "a%25b%0A");
        assert_eq!(encode_name(".."), "%2E.");
        assert_eq!(encode_name("é"), "é");
        assert_eq!(encode_name(""), "%");
        assert_eq!(encode_name(&"é".repeat(1000)).len(), 255);
        assert_ne!(encode_name(&"x".repeat(1000)), encode_name(&"x".repeat(1001)));
    }

    #[test]
    fn names_are_decoded() {
        for text in ["", "a/b", "100%", ".x", "é\n", "%2F", "plain"] {
            assert_eq!(decode_name(&encode_name(text)).as_deref(), Some(text));
        }
        for wrong in ["%2", "a%", "%zz", "%FF", "%+1"] {
            assert_eq!(decode_name(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn tables_have_no_name_twice() {
        let names: Vec<_> = ContainerFile::TABLE.iter().map(|row| row.1).collect();
        let unique: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
        assert_eq!(ContainerFile::of("spec.json"), Some(ContainerFile::Spec));
    }
}
