//! The spool: the device's bounded, crash-proof store of rows that still have to go up.
//!
//! Invariants:
//! - Order: rows get sequence numbers from 1 in the order they are appended, and are read in that order. A
//!   number is never used twice within a stream, whatever was deleted or damaged meanwhile. Numbers have no
//!   gaps, save that a jump follows where the newest segment is found unreadable after a crash.
//! - Durable: an appended row is on the disk when `append` returns; after a crash it is there, once.
//! - Accounting: a row is in exactly one of held, uploaded, dropped (by reason) and lost, and [`Ledger`] adds up.
//! - Only a receipt deletes a row as uploaded; the ledger knows, durably, before the row is deleted.
//! - The directory takes at most `max_bytes` of disk at any moment, quarantine and ledger included. When it is
//!   full, the oldest rows give way, counted.
//! - A segment that can't be read is set aside, counted and reported; the spool goes on without it.
//! - At most two segments are open, so memory does not grow with what is held.
//!
//! On disk (`directory.rs`): `lock`; `ledger` (`ledger.rs`), the commit point of receipts and evictions;
//! `segment-*` (`segment.rs`), databases that are filled once and deleted whole; `quarantine/`. After a restart
//! no segment is written again: sled's files grow without bound over crashes, and a fresh one can't.
//!
//! All calls block on the disk; the caller keeps them off its I/O threads.

mod directory;
mod ledger;
mod segment;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub use self::ledger::{DropReason, Ledger};
use self::ledger::{LedgerFile, Record};
use self::segment::{Segment, SegmentError};

/// The least bound: half a dozen segments of the least useful size (two of sled's log segments).
pub const MIN_BYTES: u64 = 8 * 1024 * 1024;
/// The default bound: weeks of a sensor's rows, and little of a board's 4 GB flash.
pub const DEFAULT_BYTES: u64 = 64 * 1024 * 1024;
/// The largest row in bytes: with its envelope it must fit one MQTT message of 128 KiB (AWS IoT's limit).
pub const MAX_ROW_BYTES: usize = segment::MAX_ROW_BYTES;

/// A segment's log takes at most this, so that reading one into order at start takes under a second on an SD card.
const MAX_SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
const MIN_SEGMENT_BYTES: u64 = 1024 * 1024;
/// Segments that fit in the bound: more waste less when one is evicted, fewer make bigger, cheaper files.
const SEGMENTS: u64 = 10;
/// What lock, ledger and directories take.
const FIXED_BYTES: u64 = ledger::FILE_BYTES * 2 + 32 * 1024;
/// Evicted ranges remembered for a late receipt; one per segment, so this covers several times what is held.
const MAX_EVICTED_RANGES: usize = 64;
/// Losses kept for a caller that does not take them; the ledger counts all.
const MAX_LOSSES: usize = 64;

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

/// Something in the spool that was found damaged; its rows are counted as lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The file or directory, by its name in the spool or its quarantine.
    pub name: String,
    /// Rows that were known to be in it and are gone.
    pub rows: u64,
    /// What was wrong.
    pub why: String,
}

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
    /// A receipt names a row that was never appended.
    #[error("receipt through row {through}, but the last one is {last}")]
    ReceiptAhead {
        /// The receipt's row.
        through: u64,
        /// The last row that has a number.
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
    #[error("segment {} is damaged: {why}", path.display())]
    Damaged {
        /// The segment's directory.
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

    fn segment(doing: &'static str, path: &Path, error: SegmentError) -> SpoolError {
        match error {
            SegmentError::Machine(source) => Self::Disk { doing, path: path.to_owned(), source },
            SegmentError::Damaged(why) => Self::Damaged { path: path.to_owned(), why },
        }
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
    /// The last row that was given out to be uploaded.
    offered: u64,
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
            evicted: VecDeque::new(),
            quarantine_bytes: 0,
            losses: Vec::new(),
        };
        spool.recover(had_ledger)?;
        if !had_ledger && had_segments {
            spool.report(
                directory::LEDGER.to_owned(),
                0,
                "missing or damaged, the counts start anew".to_owned(),
            );
        }
        spool.commit(spool.record.clone())?;
        spool.make_room(0)?;
        Ok(spool)
    }

    /// The name of this spool's numbering: 32 hexadecimal digits, made once at random. A stream and a sequence
    /// number name a row for ever.
    pub fn stream(&self) -> &str {
        &self.record.stream
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

    /// The oldest held rows with a number above `after`, in order: at most `max_rows` of them and `max_bytes`
    /// in all, but one at least if there is one. They stay until their receipt, so several batches can be in
    /// flight.
    ///
    /// # Errors
    /// The disk refuses to be read. A damaged segment is no error: it is set aside and counted.
    pub fn peek(
        &mut self,
        after: u64,
        max_rows: usize,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, SpoolError> {
        let mut rows = Vec::new();
        let mut bytes = 0;
        let mut from = after.saturating_add(1).max(self.record.head);
        'full: while let Some(span) = self.spans.iter().find(|span| span.end > from) {
            let (first, end) = (span.first, span.end);
            from = from.max(first);
            let group = match self.read(first, from) {
                Ok(group) => group,
                Err(SegmentError::Damaged(why)) => {
                    self.quarantine(first, why)?;
                    continue;
                }
                Err(error) => {
                    return Err(SpoolError::segment(
                        "reading",
                        &self.directory.join(span_name(&self.spans, first)),
                        error,
                    ));
                }
            };
            for (number, row) in group.into_iter().take_while(|(number, _)| *number < end) {
                if rows.len() >= max_rows || (!rows.is_empty() && bytes + row.len() > max_bytes) {
                    break 'full;
                }
                bytes += row.len();
                from = number + 1;
                self.offered = self.offered.max(number);
                rows.push((number, row));
            }
        }
        Ok(rows)
    }

    /// Takes the cloud's word that all rows through `durable_through` are safe there, and returns how many of
    /// them were not counted as uploaded before. The same receipt twice changes nothing.
    ///
    /// A row that was evicted while it was in flight is counted as uploaded, no longer as dropped, when its
    /// receipt comes, unless the process restarted in between.
    ///
    /// # Errors
    /// [`SpoolError::ReceiptAhead`], or the disk refuses to be written; then nothing has changed.
    pub fn receipt(&mut self, durable_through: u64) -> Result<u64, SpoolError> {
        if durable_through >= self.record.next {
            return Err(SpoolError::ReceiptAhead { through: durable_through, last: self.record.next - 1 });
        }
        let head = self.record.head.max(durable_through + 1);
        let held: u64 = self.spans.iter().map(|span| span.rows_in(self.record.head..head)).sum();
        let late: u64 = self.evicted.iter().map(|range| overlap(range, durable_through)).sum();
        if held + late == 0 && head == self.record.head {
            return Ok(0);
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
        Ok(held + late)
    }

    /// Counts rows that were given up before they got here. Durable with the next append or receipt.
    pub fn shed(&mut self, reason: DropReason, rows: u64) {
        self.record.drop_rows(reason, rows);
    }

    /// What became of every row so far.
    pub fn ledger(&self) -> Ledger {
        self.record.ledger(self.held())
    }

    /// Bytes of disk that the spool takes now, as allocated blocks. Walks the directory.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn physical_bytes(&self) -> Result<u64, SpoolError> {
        directory::allocated(&self.directory).map_err(disk("measuring", &self.directory))
    }

    /// What was found damaged since the last call.
    pub fn take_losses(&mut self) -> Vec<Loss> {
        std::mem::take(&mut self.losses)
    }

    /// Closes the spool in order, which spares the next start a segment to check. To just drop it is as safe.
    ///
    /// # Errors
    /// The disk refuses to be written; what was appended is safe all the same.
    pub fn close(&mut self) -> Result<(), SpoolError> {
        self.close_active()?;
        self.commit(self.record.clone())
    }

    /// Finds the segments and makes the record agree with what is really there.
    fn recover(&mut self, had_ledger: bool) -> Result<(), SpoolError> {
        let entries = directory::segments(&self.directory).map_err(disk("listing", &self.directory))?;
        let mut unreadable = Vec::new();
        let mut never_before = self.record.next;
        for entry in entries {
            let path = self.directory.join(&entry.name);
            let (first, end) = match entry.numbers {
                None => {
                    unreadable.push((entry.name, "not a segment".to_owned()));
                    continue;
                }
                Some((first, Some(end))) => (first, end),
                Some((first, None)) => match Segment::load(&path, first) {
                    Ok(segment) if segment.end() > first => (first, segment.end()),
                    Ok(_) if self.record.next <= first => {
                        // Made and, by all that is known, never written. If the ledger is older than that (a
                        // power cut), there were rows, and their numbers must not come again.
                        never_before = never_before.max(first + segment::MAX_ROWS);
                        (first, first)
                    }
                    Ok(_) => {
                        never_before = never_before.max(first + segment::MAX_ROWS);
                        unreadable.push((entry.name, "no row in it is left".to_owned()));
                        continue;
                    }
                    Err(SegmentError::Damaged(why)) => {
                        never_before = never_before.max(first + segment::MAX_ROWS);
                        unreadable.push((entry.name, why));
                        continue;
                    }
                    Err(SegmentError::Machine(_)) if self.record.next > first => {
                        // sled can't open a database on a full disk. The agent has to start there all the same,
                        // so the ledger is believed until the segment is read.
                        never_before = never_before.max(first + segment::MAX_ROWS);
                        let charge = segment::full_charge(self.segment_bytes);
                        self.spans.push_back(Span { first, end: self.record.next, closed: false, charge });
                        continue;
                    }
                    Err(error) => return Err(SpoolError::segment("opening", &path, error)),
                },
            };
            if end <= first || end <= self.record.head {
                directory::remove(&path).map_err(disk("deleting", &path))?;
                continue;
            }
            let span = Span {
                first,
                end,
                closed: true,
                charge: segment::charge(&path).map_err(disk("measuring", &path))?,
            };
            let closed = self.directory.join(span.name());
            if closed != path {
                fs::rename(&path, &closed).map_err(disk("renaming", &path))?;
            }
            self.record.next = self.record.next.max(end);
            self.spans.push_back(span);
        }
        directory::sync(&self.directory).map_err(disk("syncing", &self.directory))?;

        if !had_ledger {
            // Nothing says what became of the rows before, so only those that are here count, in a stream of their
            // own. Rows whose receipts were forgotten go up again.
            self.record.skipped = (self.record.next - 1).saturating_sub(self.held());
        }
        for (name, why) in unreadable {
            let lost = self.count_lost();
            self.set_aside(&name)?;
            self.report(name, lost, why);
        }
        let limit = self.quarantine_limit();
        self.quarantine_bytes =
            directory::trim_quarantine(&self.directory, limit).map_err(disk("trimming", &self.directory))?;
        let lost = self.count_lost();
        if lost > 0 {
            self.report("segments".to_owned(), lost, "rows that were stored are not there".to_owned());
        }
        self.record.skipped += never_before.saturating_sub(self.record.next);
        self.record.next = self.record.next.max(never_before);
        Ok(())
    }

    fn store(&mut self, mut rows: &[Vec<u8>]) -> Result<(), SpoolError> {
        while !rows.is_empty() {
            let (count, bytes) = segment::first_group(rows);
            let (group, rest) = rows.split_at(count);
            self.make_writable(bytes)?;
            if let Some(active) = &mut self.active {
                active
                    .append(group)
                    .map_err(|error| SpoolError::segment("writing", &self.directory, error))?;
            }
            rows = rest;
        }
        self.acknowledge()
    }

    /// Makes durable, and countable, what was appended to the active segment.
    fn acknowledge(&mut self) -> Result<(), SpoolError> {
        let (Some(active), Some(span)) = (&self.active, self.spans.back_mut()) else { return Ok(()) };
        active.sync().map_err(|error| SpoolError::segment("syncing", &self.directory, error))?;
        span.end = active.end();
        self.record.next = active.end();
        self.note();
        Ok(())
    }

    /// Sees to an active segment with room for `bytes` more.
    fn make_writable(&mut self, bytes: usize) -> Result<(), SpoolError> {
        if let Some(active) = &self.active {
            let room = active.has_room(bytes, self.segment_bytes);
            if room.map_err(|error| SpoolError::segment("measuring", &self.directory, error))? {
                return Ok(());
            }
            self.acknowledge()?;
            self.close_active()?;
        }
        let charge = segment::full_charge(self.segment_bytes);
        self.make_room(charge)?;
        let span = Span { first: self.record.next, end: self.record.next, closed: false, charge };
        let path = self.directory.join(span.name());
        directory::remove(&path).map_err(disk("deleting", &path))?;
        let created = Segment::create(&path, span.first)
            .map_err(|error| SpoolError::segment("creating", &path, error))
            .and_then(|segment| {
                directory::sync(&self.directory).map_err(disk("syncing", &self.directory))?;
                Ok(segment)
            });
        match created {
            Ok(segment) => {
                self.active = Some(segment);
                self.spans.push_back(span);
                Ok(())
            }
            Err(error) => {
                // Half a segment on a full disk helps nobody; if this fails too, the next attempt removes it.
                let _ = directory::remove(&path);
                Err(error)
            }
        }
    }

    /// Closes the active segment at its last durable row.
    fn close_active(&mut self) -> Result<(), SpoolError> {
        if self.active.take().is_none() {
            return Ok(());
        }
        let Some(span) = self.spans.back_mut() else { return Ok(()) };
        let path = self.directory.join(span.name());
        if span.end == span.first {
            self.spans.pop_back();
            return directory::remove(&path).map_err(disk("deleting", &path));
        }
        span.charge = segment::charge(&path).map_err(disk("measuring", &path))?;
        let name = directory::segment_name(span.first, Some(span.end));
        fs::rename(&path, self.directory.join(name)).map_err(disk("renaming", &path))?;
        span.closed = true;
        directory::sync(&self.directory).map_err(disk("syncing", &self.directory))?;
        self.remove_drained()
    }

    /// Evicts the oldest segments until `bytes` more fit.
    fn make_room(&mut self, bytes: u64) -> Result<(), SpoolError> {
        while self.charged() + bytes > self.max_bytes {
            let Some(span) = self.spans.front() else { break };
            let (start, end) = (span.first.max(self.record.head), span.end);
            let rows = span.rows_in(start..end);
            let mut record = Record { head: self.record.head.max(end), ..self.record.clone() };
            record.drop_rows(DropReason::SpoolFull, rows);
            self.commit(record)?;
            let in_flight = start..end.min(self.offered + 1);
            if !in_flight.is_empty() {
                if self.evicted.len() == MAX_EVICTED_RANGES {
                    self.evicted.pop_front();
                }
                self.evicted.push_back(in_flight);
            }
            self.remove_drained()?;
        }
        Ok(())
    }

    /// Deletes the closed segments that have no row left.
    fn remove_drained(&mut self) -> Result<(), SpoolError> {
        while let Some(span) = self.spans.front()
            && span.end <= self.record.head
            && !(self.active.is_some() && self.spans.len() == 1)
        {
            if self.reader.as_ref().is_some_and(|(first, _)| *first == span.first) {
                self.reader = None;
            }
            let path = self.directory.join(span.name());
            directory::remove(&path).map_err(disk("deleting", &path))?;
            self.spans.pop_front();
        }
        Ok(())
    }

    /// The rows from number `from` on that lie together in the segment that starts at `first`.
    fn read(&mut self, first: u64, from: u64) -> Result<Vec<(u64, Vec<u8>)>, SegmentError> {
        if let (Some(active), Some(last)) = (&self.active, self.spans.back())
            && last.first == first
        {
            return active.group(from);
        }
        if self.reader.as_ref().is_none_or(|(open, _)| *open != first) {
            self.reader = None;
            let segment = Segment::load(&self.directory.join(span_name(&self.spans, first)), first)?;
            self.shorten(first, segment.end())?;
            self.reader = Some((first, segment));
        }
        self.reader.as_ref().map_or(Ok(Vec::new()), |(_, segment)| segment.group(from))
    }

    /// Takes note that the segment at `first` can be read only up to `end`.
    fn shorten(&mut self, first: u64, end: u64) -> Result<(), SegmentError> {
        let Some(span) = self.spans.iter_mut().find(|span| span.first == first && span.end > end) else {
            return Ok(());
        };
        if end <= self.record.head.max(first) {
            return Err(SegmentError::Damaged("no held row in it can be read".to_owned()));
        }
        // The name first: should the process die before the ledger is written, opening finds the rows missing.
        let path = self.directory.join(span.name());
        fs::rename(&path, self.directory.join(directory::segment_name(first, Some(end))))?;
        directory::sync(&self.directory)?;
        span.end = end;
        let name = span.name();
        let lost = self.count_lost();
        self.report(name, lost, "its last rows can't be read".to_owned());
        self.ledger.commit(&self.record)?;
        Ok(())
    }

    /// Gives up the segment that starts at `first`.
    fn quarantine(&mut self, first: u64, why: String) -> Result<(), SpoolError> {
        let name = span_name(&self.spans, first);
        self.reader = None;
        if self.spans.back().is_some_and(|span| span.first == first) {
            self.active = None;
        }
        self.set_aside(&name)?;
        self.spans.retain(|span| span.first != first);
        let lost = self.count_lost();
        self.report(name, lost, why);
        self.commit(self.record.clone())
    }

    fn set_aside(&mut self, name: &str) -> Result<(), SpoolError> {
        let limit = self.quarantine_limit();
        self.quarantine_bytes = directory::quarantine(&self.directory, name, limit)
            .map_err(disk("setting aside", &self.directory.join(name)))?;
        Ok(())
    }

    /// Counts as lost the rows that should be held and are in no segment; returns how many.
    fn count_lost(&mut self) -> u64 {
        let missing = self.record.numbered().saturating_sub(self.record.gone() + self.held());
        self.record.lost += missing;
        missing
    }

    fn report(&mut self, name: String, rows: u64, why: String) {
        tracing::warn!(%name, rows, %why, "the spool found damage");
        if self.losses.len() < MAX_LOSSES {
            self.losses.push(Loss { name, rows, why });
        }
    }

    fn held(&self) -> u64 {
        self.spans.iter().map(|span| span.rows_in(self.record.head..u64::MAX)).sum()
    }

    /// The most bytes that the directory may come to take as things stand.
    fn charged(&self) -> u64 {
        self.spans.iter().map(|span| span.charge).sum::<u64>() + self.quarantine_bytes + FIXED_BYTES
    }

    /// One full segment may be kept for whoever wants to know why it broke.
    fn quarantine_limit(&self) -> u64 {
        segment::full_charge(self.segment_bytes) + 64 * 1024
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

fn span_name(spans: &VecDeque<Span>, first: u64) -> String {
    spans.iter().find(|span| span.first == first).map(Span::name).unwrap_or_default()
}

/// How many numbers of `range` are at most `through`.
fn overlap(range: &Range<u64>, through: u64) -> u64 {
    range.end.min(through + 1).saturating_sub(range.start)
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn disk(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::Disk { doing, path: path.clone(), source }
}

#[cfg(test)]
mod tests;
