//! What the spool does about damage: at its opening, after whatever happened, and later where it shows in reading.
//!
//! Invariants:
//! - The directory changes first (a segment is moved away, or renamed to a nearer end), the ledger after. Should the
//!   process die in between, opening finds the rows missing and counts them then: once.
//! - A number that may have been given to a row that can't be read is never given again.

use std::fs;

use super::error::{disk, is_full};
use super::segment::{self, SegmentError};
use super::{Span, Spool, SpoolError, directory, reserve};
use crate::durable;

/// Losses kept for a caller that does not take them; the ledger counts all.
const MAX_LOSSES: usize = 64;

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

impl Spool {
    /// Finds the segments and makes the record agree with what is really there.
    pub(super) fn recover(&mut self, had_ledger: bool) -> Result<(), SpoolError> {
        let entries = directory::segments(&self.directory).map_err(disk("listing", &self.directory))?;
        let mut unreadable = Vec::new();
        let mut never_before = self.record.next;
        let begins: Vec<u64> = entries.iter().filter_map(|entry| Some(entry.numbers?.0)).collect();
        for entry in entries {
            let path = self.directory.join(&entry.name);
            let (first, end) = match entry.numbers {
                None => {
                    unreadable.push((entry.name, "not a segment".to_owned()));
                    continue;
                }
                Some((first, Some(end))) => (first, end),
                // What a killed process had written and not synced counts from now on, so it is synced first. It ends where
                // the next one begins: rows beyond were refused when the disk failed, and their numbers given to others.
                Some((first, None)) => {
                    let next = begins.iter().copied().find(|begin| *begin > first).unwrap_or(u64::MAX);
                    let loaded = reserve::load(&self.directory, &path, first);
                    match loaded.and_then(|segment| segment.sync().map(|()| segment)) {
                        Ok(segment) if segment.end() > first => (first, segment.end().min(next)),
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
                        // sled can't open a database on a full disk, but the agent has to start there all the same. The
                        // ledger is believed about where the segment ends, and one of which it knows nothing is set aside.
                        Err(SegmentError::Machine(error)) if is_full(&error) || self.record.next > first => {
                            never_before = never_before.max(first + segment::MAX_ROWS);
                            if self.record.next <= first {
                                unreadable.push((entry.name, error.to_string()));
                                continue;
                            }
                            (first, self.record.next.min(next))
                        }
                        Err(error) => return Err(SpoolError::segment("opening", &path, error)),
                    }
                }
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
        durable::sync_directory(&self.directory).map_err(disk("syncing", &self.directory))?;

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

    /// Takes note that the segment at `first` can be read only up to `end`.
    pub(super) fn shorten(&mut self, first: u64, end: u64) -> Result<(), SegmentError> {
        let Some(span) = self.spans.iter_mut().find(|span| span.first == first && span.end > end) else {
            return Ok(());
        };
        if end <= self.record.head.max(first) {
            return Err(SegmentError::Damaged("no held row in it can be read".to_owned()));
        }
        // The name first: should the process die before the ledger is written, opening finds the rows missing.
        let path = self.directory.join(span.name());
        fs::rename(&path, self.directory.join(directory::segment_name(first, Some(end))))?;
        durable::sync_directory(&self.directory)?;
        span.end = end;
        let name = span.name();
        let lost = self.count_lost();
        self.report(name, lost, "its last rows can't be read".to_owned());
        self.ledger.commit(&self.record)?;
        Ok(())
    }

    /// Gives up the segment that starts at `first`.
    pub(super) fn quarantine(&mut self, first: u64, why: String) -> Result<(), SpoolError> {
        let name = self.name_of(first);
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

    pub(super) fn report(&mut self, name: String, rows: u64, why: String) {
        tracing::warn!(%name, rows, %why, "the spool found damage");
        if self.losses.len() < MAX_LOSSES {
            self.losses.push(Loss { name, rows, why });
        }
    }

    /// One full segment may be kept for whoever wants to know why it broke.
    fn quarantine_limit(&self) -> u64 {
        segment::full_charge(self.segment_bytes) + 64 * 1024
    }
}
