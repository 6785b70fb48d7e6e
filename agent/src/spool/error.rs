//! Why the spool could not do what was asked.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::ledger::DropReason;
use super::segment::SegmentError;
use super::{MAX_ROW_BYTES, MIN_BYTES};

/// Why the spool could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The configured bound is too small to work with.
    #[error("a spool of {given} bytes is too small, it needs {MIN_BYTES}")]
    BoundTooSmall {
        /// The configured bound in bytes.
        given: u64,
    },
    /// Another process works on the same directory.
    #[error("spool {} is in use by another process", path.display())]
    InUse {
        /// The spool's directory.
        path: PathBuf,
    },
    /// One of the rows is too large; none was stored.
    #[error("row {index} has {bytes} bytes, the most is {MAX_ROW_BYTES}")]
    RowTooLarge {
        /// Its place in the appended rows.
        index: usize,
        /// Its size.
        bytes: usize,
    },
    /// A receipt names a row that can't have been given out.
    #[error("receipt through row {through}, but at most row {last} was given out")]
    ReceiptAhead {
        /// The receipt's row.
        through: u64,
        /// The last row that this process gave out or one before it may have.
        last: u64,
    },
    /// Rows could not be stored. Those that were not are counted as dropped; the spool stays usable.
    #[error("{dropped} rows were not stored: {source}")]
    NotStored {
        /// The numbers of those rows, the first of the append, that were stored nevertheless.
        stored: Range<u64>,
        /// How many were not.
        dropped: u64,
        /// What they are counted as.
        reason: DropReason,
        /// What went wrong.
        source: Box<SpoolError>,
    },
    /// The disk or the file system refused.
    #[error("{doing} {}: {source}", path.display())]
    Disk {
        /// What was being done, as a participle.
        doing: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// The reason given.
        source: io::Error,
    },
    /// A segment broke while it was written.
    #[error("damaged segment in {}: {why}", path.display())]
    Damaged {
        /// The segment or its spool.
        path: PathBuf,
        /// What was wrong.
        why: String,
    },
}

impl SpoolError {
    /// Whether the same call may work later, without a change by the caller.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::BoundTooSmall { .. } | Self::RowTooLarge { .. } | Self::ReceiptAhead { .. } => false,
            Self::InUse { .. } | Self::NotStored { .. } | Self::Disk { .. } | Self::Damaged { .. } => true,
        }
    }

    pub(super) fn segment(doing: &'static str, path: &Path, error: SegmentError) -> SpoolError {
        match error {
            SegmentError::Machine(source) => Self::Disk { doing, path: path.to_owned(), source },
            SegmentError::Damaged(why) => Self::Damaged { path: path.to_owned(), why },
        }
    }
}

/// Whether the file system had no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Says what was being done, and to what, when the disk refused.
pub(super) fn disk(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::Disk { doing, path: path.clone(), source }
}
