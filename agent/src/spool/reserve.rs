//! A file that holds room for bad times: on a full disk sled can't open a segment, and rows that can't be read can't go
//! up and make room.
//!
//! Invariants:
//! - The reserve takes what opening one segment takes, and is counted into the spool's bound.
//! - It is given up only to read a segment, and made again before anything else once one was deleted.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::error::is_full;
use super::segment::{OPENING_BYTES, Segment, SegmentError};

/// What the file takes.
pub(super) const BYTES: u64 = OPENING_BYTES;

const NAME: &str = "reserve";

/// Sees to it that the reserve is there. Where the disk has no room for it, or the file system none to give in advance,
/// the spool goes on without.
pub(super) fn keep(directory: &Path) {
    let path = directory.join(NAME);
    let kept = OpenOptions::new().create(true).truncate(false).write(true).open(&path).and_then(|file| {
        let length = libc::off_t::try_from(BYTES).map_err(io::Error::other)?;
        // SAFETY: posix_fallocate takes a descriptor that is open for the call, and numbers.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    });
    if let Err(error) = kept {
        tracing::debug!(%error, path = %path.display(), "no room is held in reserve");
        // A part of it is room that rows could have.
        let _ = fs::remove_file(&path);
    }
}

/// Opens the segment at `path`; on a full disk in the room that was held for it.
pub(super) fn load(directory: &Path, path: &Path, first: u64) -> Result<Segment, SegmentError> {
    match Segment::load(path, first) {
        Err(SegmentError::Machine(error))
            if is_full(&error) && fs::remove_file(directory.join(NAME)).is_ok() =>
        {
            tracing::info!("the disk is full; what is held is read in the room that was reserved for it");
            Segment::load(path, first)
        }
        other => other,
    }
}
