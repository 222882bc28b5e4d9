//! [`Taken`]: what was read of a container, or of one of its volumes.

use crate::capture::Volume;
use crate::changeset::{Changes, Kind, Location, escape, tar};
use crate::image::LayerWriter;
use crate::progress::Progress;

/// A layer whose last bytes are still to be written, and what is to be said of it.
pub(super) struct Taken {
    /// None if there is nothing to put into one.
    pub(super) layer: Option<LayerWriter>,
    /// Files whose content is not that of one moment.
    pub(super) torn: Vec<Vec<u8>>,
    pub(super) skipped_sockets: u64,
    /// How often files were read before the freeze, and what was read in it.
    pub(super) sealed: Option<(usize, u64)>,
    pub(super) volumes: Vec<(Volume, LayerWriter)>,
    /// What was deleted, by its path.
    pub(super) deleted: Vec<Vec<u8>>,
    /// What [`Look::remember`](super::look::Look::remember) made of it.
    pub(super) files: Option<Vec<u8>>,
}

impl Taken {
    pub(super) fn nothing(changes: &Changes) -> Taken {
        Taken {
            layer: None,
            torn: Vec::new(),
            skipped_sockets: changes.sockets,
            sealed: None,
            volumes: Vec::new(),
            deleted: Vec::new(),
            files: None,
        }
    }

    pub(super) fn new(changes: &Changes, written: tar::Written, layer: LayerWriter, progress: &Progress) -> Taken {
        let mut torn = written.torn;
        torn.extend_from_slice(&changes.vanished);
        torn.sort_unstable();
        torn.dedup();
        for path in &torn {
            progress.log(format!("changed while it was read: /{}", escape(path)));
        }
        for path in &changes.mounts {
            progress.log(format!("left out, something is mounted there: /{}", escape(path)));
        }
        if changes.dropped_xattrs > 0 {
            progress.log(format!("left out extended attributes that bind to this host: {}", changes.dropped_xattrs));
        }
        let whiteouts = changes.entries.iter().filter(|entry| entry.kind == Kind::Whiteout);
        let deleted = whiteouts.map(|entry| entry.path.clone()).collect();
        let skipped_sockets = written.skipped_sockets;
        Taken { layer: Some(layer), torn, skipped_sockets, deleted, ..Taken::nothing(changes) }
    }

    /// What was read of a volume is part of this, as a layer of its own.
    pub(super) fn add(&mut self, volume: &Volume, location: &Location, of_volume: Taken) {
        self.torn.extend(of_volume.torn.iter().map(|path| location.place(path)));
        self.torn.sort_unstable();
        self.skipped_sockets += of_volume.skipped_sockets;
        self.volumes.extend(of_volume.layer.map(|layer| (volume.clone(), layer)));
    }
}
