//! The way out: the oldest rows are read from their segments. Beside the active one a single segment is open at a time: the
//! one that was read before is closed first.

use super::segment::SegmentError;
use super::{Spool, SpoolError, reserve};

impl Spool {
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
                    let path = self.directory.join(self.name_of(first));
                    return Err(SpoolError::segment("reading", &path, error));
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

    /// The rows from number `from` on that lie together in the segment that starts at `first`.
    fn read(&mut self, first: u64, from: u64) -> Result<Vec<(u64, Vec<u8>)>, SegmentError> {
        if let (Some(active), Some(last)) = (&self.active, self.spans.back())
            && last.first == first
        {
            return active.group(from);
        }
        let segment = match self.reader.take() {
            Some((open, segment)) if open == first => segment,
            other => {
                drop(other);
                let path = self.directory.join(self.name_of(first));
                let segment = reserve::load(&self.directory, &path, first)?;
                self.shorten(first, segment.end())?;
                segment
            }
        };
        let group = segment.group(from);
        self.reader = Some((first, segment));
        group
    }
}
