//! Reads one key after the other and keeps what is wrong instead of stopping at it.

use super::{Entry, Mistake, Place};

/// Reads the entries of the whole configuration, or of one section of it.
pub(super) struct Reader<'a> {
    entries: &'a [Entry],
    /// Where a key stands that is missing.
    place: Place,
    mistakes: Vec<Mistake>,
    #[cfg(test)]
    pub(super) asked: std::collections::BTreeSet<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(entries: &'a [Entry], place: Place) -> Self {
        Self {
            entries,
            place,
            mistakes: Vec::new(),
            #[cfg(test)]
            asked: std::collections::BTreeSet::new(),
        }
    }

    /// The value of a key that must be set. `None`: it is wrong, and that is kept.
    pub(super) fn value<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match self.text(key) {
            Some(text) => parse(text).map_err(|what| self.wrong(key, what)).ok(),
            None => {
                self.wrong(key, "is missing");
                None
            }
        }
    }

    /// The value of a key that may be left open: missing or "".
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        match self.text(key) {
            None | Some("") => Some(None),
            Some(_) => self.value(key, parse).map(Some),
        }
    }

    /// Keeps a mistake in the value of a key.
    pub(super) fn wrong(&mut self, key: &str, what: impl Into<String>) {
        let entry = self.entries.iter().find(|entry| entry.key == key);
        let place = entry.map_or(&self.place, |entry| &entry.place);
        self.mistakes.push(Mistake::new(key, place, what));
    }

    /// All that was wrong.
    pub(super) fn into_mistakes(self) -> Vec<Mistake> {
        self.mistakes
    }

    fn text(&mut self, key: &str) -> Option<&'a str> {
        #[cfg(test)]
        self.asked.insert(key.to_owned());
        self.entries.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
    }
}
