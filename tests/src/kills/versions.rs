//! What must be true of the versions of a model, whatever was killed: none is lost, none comes back, no number is given twice.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::process::Failure;

/// The versions of the model, as far as somebody was told.
#[derive(Default)]
pub(super) struct Versions {
    there: BTreeSet<u64>,
    /// What may be there or not: nobody heard how it ended.
    unsure: BTreeSet<u64>,
    /// The highest number that was ever seen.
    pub(super) highest: u64,
}

impl Versions {
    /// A registration was answered.
    pub(super) fn registered(&mut self, version: u64) -> Result<(), Failure> {
        if version <= self.highest {
            return Err(format!("version {version} was given though {} was seen before", self.highest));
        }
        self.highest = version;
        self.there.insert(version);
        Ok(())
    }

    /// The oldest but the one that is deployed.
    pub(super) fn deletable(&self) -> Option<u64> {
        self.there.iter().copied().find(|version| *version != 1)
    }

    /// A deletion was asked for, and answered or not.
    pub(super) fn deleted(&mut self, version: u64, surely: bool) {
        self.there.remove(&version);
        if !surely {
            self.unsure.insert(version);
        }
    }

    /// Takes note of what is listed, and gives the newest; it must be what is known, and at most one beyond.
    pub(super) fn compare(&mut self, listed: &Value) -> Result<u64, Failure> {
        let found: BTreeSet<u64> =
            each_version(listed).filter_map(|record| record["version"].as_u64()).collect();
        let mut beyond = found.iter().filter(|version| **version > self.highest);
        let (unheard, more) = (beyond.next().copied(), beyond.next());
        if let Some(more) = more {
            return Err(format!("nobody asked for version {more}: {found:?}"));
        }
        let known = found.iter().filter(|version| **version <= self.highest);
        if let Some(back) = known.copied().find(|it| !self.there.contains(it) && !self.unsure.contains(it)) {
            return Err(format!("version {back} is there again: {found:?}"));
        }
        // Registered, and killed before it could say so.
        self.highest = unheard.unwrap_or(self.highest);
        if let Some(missing) = self.there.difference(&found).next() {
            return Err(format!("version {missing} is gone: {found:?}"));
        }
        self.there = found;
        self.unsure.clear();
        self.there.last().copied().ok_or_else(|| "no version is left".to_owned())
    }
}

/// The records in a list of versions.
pub(super) fn each_version(listed: &Value) -> impl Iterator<Item = &Value> {
    listed.as_array().or_else(|| listed["models"].as_array()).into_iter().flatten()
}
