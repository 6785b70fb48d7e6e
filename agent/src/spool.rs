//! The spool: the device's bounded, crash-proof store of rows that still have to go up.
//!
//! Invariants:
//! - Order: rows get sequence numbers from 1 in the order they are appended, and are read in that order. A
//!   number is never used twice within a stream, whatever was deleted or damaged meanwhile. Numbers have no
//!   gaps, save that a jump follows where the newest segment is found unreadable after a crash.
//! - Durable: an appended row is on the disk when `append` returns; after a crash it is there, once. So is a row that a
//!   crash cut off on its way and that is found all the same, before it is counted.
//! - Accounting: a row is in exactly one of held, uploaded, dropped (by reason) and lost, and [`Ledger`] adds up.
//! - Only a receipt deletes a row as uploaded, and only one that this process gave out; the ledger knows, durably,
//!   before the row is deleted.
//! - The directory takes at most `max_bytes` of disk at any moment, quarantine and ledger included. When it is
//!   full, the oldest rows give way, counted.
//! - A segment that can't be read is set aside, counted and reported; the spool goes on without it.
//! - At most two segments are open, so memory does not grow with what is held.
//!
//! On disk (`directory.rs`): `lock`; `ledger` (`ledger.rs`), the commit point of receipts and evictions;
//! `reserve` (`reserve.rs`), room for reading on a full disk; `segment-*` (`segment.rs`), databases that are filled once
//! and deleted whole; `quarantine/`. After a restart no segment is written again: sled's files grow without bound over
//! crashes, and a fresh one can't.
//!
//! All calls block on the disk; the caller keeps them off its I/O threads.

mod damage;
mod directory;
mod error;
mod ledger;
mod read;
mod reserve;
mod segment;
mod write;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::path::{Path, PathBuf};

use cloud_sync::limits::MAX_ROW_BYTES;

pub use self::damage::Loss;
pub use self::error::SpoolError;
use self::error::{disk, is_full};
pub use self::ledger::{DropReason, Ledger};
use self::ledger::{LedgerFile, Record};
use self::segment::Segment;
use crate::durable;

/// The least bound: half a dozen segments of the least useful size (two of sled's log segments).
pub const MIN_BYTES: u64 = 8 * 1024 * 1024;
/// The default bound: weeks of a sensor's rows, and little of a board's 4 GB flash.
pub const DEFAULT_BYTES: u64 = 64 * 1024 * 1024;

/// A segment's log takes at most this: sled keeps in memory what it has read of an open one, and an SD card takes
/// a fraction of a second to read one through.
const MAX_SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
const MIN_SEGMENT_BYTES: u64 = 1024 * 1024;
/// Segments that fit in the bound, where they get neither too small nor too large: with more, less is evicted at
/// once; with fewer, less is spent on making them.
const SEGMENTS: u64 = 16;

/// How a [`Spool`] is to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolOptions {
    /// The most bytes of disk that the spool's directory may take; at least [`MIN_BYTES`].
    pub max_bytes: u64,
}

impl Default for SpoolOptions {
    fn default() -> Self {
        SpoolOptions { max_bytes: DEFAULT_BYTES }
    }
}

/// The rows of one segment.
struct Span {
    first: u64,
    /// The number after the last row.
    end: u64,
    /// Closed: it is never written again, and its name says its end.
    closed: bool,
    /// The most bytes of disk that it may come to take.
    charge: u64,
}

impl Span {
    fn name(&self) -> String {
        directory::segment_name(self.first, self.closed.then_some(self.end))
    }

    /// How many of its rows are in `numbers`.
    fn rows_in(&self, numbers: Range<u64>) -> u64 {
        self.end.min(numbers.end).saturating_sub(self.first.max(numbers.start))
    }
}

/// The open spool. One process, one at a time: a lock on the directory sees to it.
pub struct Spool {
    directory: PathBuf,
    max_bytes: u64,
    segment_bytes: u64,
    _lock: File,
    ledger: LedgerFile,
    record: Record,
    /// Oldest first.
    spans: VecDeque<Span>,
    /// The segment of the last span, while it is being written.
    active: Option<Segment>,
    /// The closed segment that was read last, and its first number.
    reader: Option<(u64, Segment)>,
    /// The last row that this process gave out to be uploaded.
    offered: u64,
    /// The last row that a process before this one may have given out under the same stream.
    offered_before: u64,
    /// Rows that were evicted after they had been given out: a receipt may still come for them.
    evicted: VecDeque<Range<u64>>,
    quarantine_bytes: u64,
    losses: Vec<Loss>,
}

impl Spool {
    /// Opens the spool in `directory`, or makes it. Damage does not fail it: see [`take_losses`](Self::take_losses).
    ///
    /// # Errors
    /// The bound is too small, another process has the spool open, or the disk refuses to be read or written.
    pub fn open(directory: &Path, options: SpoolOptions) -> Result<Spool, SpoolError> {
        let SpoolOptions { max_bytes } = options;
        if max_bytes < MIN_BYTES {
            return Err(SpoolError::BoundTooSmall { given: max_bytes });
        }
        let segment_bytes = (max_bytes / SEGMENTS).clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES);
        fs::create_dir_all(directory).map_err(disk("creating", directory))?;
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            durable::sync_directory(parent).map_err(disk("syncing", parent))?;
        }
        let lock = lock(directory)?;
        let path = directory.join(directory::LEDGER);
        let found = LedgerFile::open(&path).map_err(disk("reading", &path))?;
        let had_segments = !directory::segments(directory).map_err(disk("listing", directory))?.is_empty();
        let had_ledger = found.is_some();
        let (ledger, record) = match found {
            Some(found) => found,
            None => {
                let record = Record::fresh();
                (LedgerFile::create(&path, &record).map_err(disk("writing", &path))?, record)
            }
        };
        let mut spool = Spool {
            directory: directory.to_owned(),
            max_bytes,
            segment_bytes,
            _lock: lock,
            ledger,
            record,
            spans: VecDeque::new(),
            active: None,
            reader: None,
            offered: 0,
            offered_before: 0,
            evicted: VecDeque::new(),
            quarantine_bytes: 0,
            losses: Vec::new(),
        };
        spool.recover(had_ledger)?;
        if had_ledger {
            spool.offered_before = spool.record.next - 1;
        }
        if !had_ledger && had_segments {
            spool.report(
                directory::LEDGER.to_owned(),
                0,
                "missing or damaged, the counts start anew".to_owned(),
            );
        }
        spool.commit(spool.record.clone())?;
        spool.make_room(0)?;
        reserve::keep(directory);
        Ok(spool)
    }

    /// The name of this spool's numbering: 32 hexadecimal digits, made once at random. A stream and a sequence
    /// number name a row for ever.
    pub fn stream(&self) -> &str {
        &self.record.stream
    }

    /// The sequence number that the next row gets; all that are held have lower ones.
    pub fn next_sequence(&self) -> u64 {
        self.record.next
    }

    /// Appends rows, all in one durable write, and returns their sequence numbers. May evict the oldest rows.
    ///
    /// # Errors
    /// [`SpoolError::RowTooLarge`]: none is stored, none counted; see [`shed`](Self::shed).
    /// [`SpoolError::NotStored`]: the disk failed; the rows that were not stored are counted as dropped.
    pub fn append(&mut self, rows: &[Vec<u8>]) -> Result<Range<u64>, SpoolError> {
        if let Some((index, row)) = rows.iter().enumerate().find(|(_, row)| row.len() > MAX_ROW_BYTES) {
            return Err(SpoolError::RowTooLarge { index, bytes: row.len() });
        }
        let start = self.record.next;
        if rows.is_empty() {
            return Ok(start..start);
        }
        let Err(error) = self.store(rows) else { return Ok(start..self.record.next) };

        // What the segment may hold beyond its last durable row is not to be trusted: it ends there.
        if let Err(error) = self.close_active() {
            tracing::warn!(%error, "could not close the segment after a failed append");
        }
        let stored = start..self.record.next;
        let dropped = (rows.len() as u64).saturating_sub(stored.end - stored.start);
        let reason = match &error {
            SpoolError::Disk { source, .. } if is_full(source) => DropReason::DiskFull,
            _ => DropReason::DiskError,
        };
        self.shed(reason, dropped);
        self.note();
        Err(SpoolError::NotStored { stored, dropped, reason, source: Box::new(error) })
    }

    /// Takes the cloud's word that all rows through `durable_through` are safe there, and returns the last row for
    /// which it is believed: none that this process did not give out. After a restart a receipt may name more, for
    /// what the process before gave out; those rows go up again and get another. The same receipt twice changes
    /// nothing.
    ///
    /// A row that was given out and then evicted is counted as uploaded, no longer as dropped, when a receipt comes
    /// for it, unless the process restarted in between. Whether it really had been sent, the spool can't know.
    ///
    /// # Errors
    /// [`SpoolError::ReceiptAhead`]: the cloud knows another history of this stream, so its word is worth nothing;
    /// see [`begin_stream`](Self::begin_stream). Or the disk refuses to be written. Nothing has changed then.
    pub fn receipt(&mut self, durable_through: u64) -> Result<u64, SpoolError> {
        let last = self.offered.max(self.offered_before);
        if durable_through > last {
            return Err(SpoolError::ReceiptAhead { through: durable_through, last });
        }
        let durable_through = durable_through.min(self.offered);
        let head = self.record.head.max(durable_through + 1);
        let held: u64 = self.spans.iter().map(|span| span.rows_in(self.record.head..head)).sum();
        let late: u64 = self.evicted.iter().map(|range| overlap(range, durable_through)).sum();
        if held + late == 0 && head == self.record.head {
            return Ok(durable_through);
        }
        let mut record = Record { head, uploaded: self.record.uploaded + held + late, ..self.record.clone() };
        if let Some(dropped) = record.dropped.get_mut(&DropReason::SpoolFull) {
            *dropped = dropped.saturating_sub(late);
        }
        self.commit(record)?;
        for range in &mut self.evicted {
            range.start = range.start.max(durable_through + 1);
        }
        self.evicted.retain(|range| !range.is_empty());
        if let Err(error) = self.remove_drained() {
            // Its bytes stay counted, and the next receipt or start tries again.
            tracing::warn!(%error, "could not delete an uploaded segment");
        }
        Ok(durable_through)
    }

    /// Goes on under a new stream, of which the cloud has no row yet: what is held goes up as if for the first time.
    /// For a spool whose numbers the cloud has seen on other rows, as after the data directory was put back from a
    /// copy: under the old stream it would take new rows for known ones and drop them.
    ///
    /// # Errors
    /// The disk refuses to be written; then nothing has changed.
    pub fn begin_stream(&mut self) -> Result<(), SpoolError> {
        self.commit(self.record.renamed())?;
        (self.offered, self.offered_before) = (0, 0);
        self.evicted.clear();
        Ok(())
    }

    /// Counts rows that were given up before they got here. Durable with the next append or receipt.
    pub fn shed(&mut self, reason: DropReason, rows: u64) {
        self.record.drop_rows(reason, rows);
    }

    /// What became of every row so far.
    pub fn ledger(&self) -> Ledger {
        self.record.ledger(self.held())
    }

    /// What was found damaged since the last call.
    pub fn take_losses(&mut self) -> Vec<Loss> {
        std::mem::take(&mut self.losses)
    }

    /// Closes the spool in order, which spares the next start a segment to check. To just drop it is as safe.
    /// It can be used on: the next append begins a new segment.
    ///
    /// # Errors
    /// The disk refuses to be written; what was appended is safe all the same.
    pub fn close(&mut self) -> Result<(), SpoolError> {
        self.close_active()?;
        self.commit(self.record.clone())
    }

    fn name_of(&self, first: u64) -> String {
        self.spans.iter().find(|span| span.first == first).map(Span::name).unwrap_or_default()
    }

    fn held(&self) -> u64 {
        self.spans.iter().map(|span| span.rows_in(self.record.head..u64::MAX)).sum()
    }

    /// Makes `record` durable, then the truth.
    fn commit(&mut self, record: Record) -> Result<(), SpoolError> {
        self.ledger.commit(&record).map_err(disk("writing", &self.directory.join(directory::LEDGER)))?;
        self.record = record;
        Ok(())
    }

    /// Writes the record down without waiting: what it says beyond the last commit, the segments say too.
    fn note(&mut self) {
        if let Err(error) = self.ledger.note(&self.record) {
            tracing::warn!(%error, "could not write the spool's ledger");
        }
    }
}

fn lock(directory: &Path) -> Result<File, SpoolError> {
    let path = directory.join(directory::LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(disk("opening", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(SpoolError::InUse { path: directory.to_owned() }),
        Err(fs::TryLockError::Error(error)) => Err(disk("locking", &path)(error)),
    }
}

/// How many numbers of `range` are at most `through`.
fn overlap(range: &Range<u64>, through: u64) -> u64 {
    range.end.min(through + 1).saturating_sub(range.start)
}

#[cfg(test)]
mod tests;
