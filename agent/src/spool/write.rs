//! The way in: rows go to the active segment, which is followed by another when it is full, and the oldest
//! segments give way for it.
//!
//! Invariants:
//! - A row counts, and has its number for good, once it is synced. Where writing fails, the segment ends at its last
//!   synced row, whatever more sled may have written.
//! - Room is made before a segment is, for all that it may come to take, so the bound holds at every moment.

use std::fs;

use super::error::disk;
use super::ledger::Record;
use super::segment::{self, Segment};
use super::{DropReason, Span, Spool, SpoolError, directory, reserve};
use crate::durable;

/// Evicted ranges remembered for a late receipt; one per segment, so this covers several times what is held.
const MAX_EVICTED_RANGES: usize = 64;
/// What lock, ledger, directories and the reserve take.
const FIXED_BYTES: u64 = super::ledger::FILE_BYTES * 2 + 32 * 1024 + reserve::BYTES;

impl Spool {
    /// Stores rows, durably, in as many segments as it takes.
    pub(super) fn store(&mut self, mut rows: &[Vec<u8>]) -> Result<(), SpoolError> {
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
                durable::sync_directory(&self.directory).map_err(disk("syncing", &self.directory))?;
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
    pub(super) fn close_active(&mut self) -> Result<(), SpoolError> {
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
        durable::sync_directory(&self.directory).map_err(disk("syncing", &self.directory))?;
        self.remove_drained()
    }

    /// Evicts the oldest segments until `bytes` more fit.
    pub(super) fn make_room(&mut self, bytes: u64) -> Result<(), SpoolError> {
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
    pub(super) fn remove_drained(&mut self) -> Result<(), SpoolError> {
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
            reserve::keep(&self.directory);
        }
        Ok(())
    }

    /// The most bytes that the directory may come to take as things stand.
    fn charged(&self) -> u64 {
        self.spans.iter().map(|span| span.charge).sum::<u64>() + self.quarantine_bytes + FIXED_BYTES
    }
}
