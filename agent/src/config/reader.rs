//! From texts to types: reads one key after the other and keeps what is wrong instead of stopping at it.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::mistake::without_credentials;
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

/// What the type itself reads, in its own words where it refuses.
pub(super) fn parsed<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

/// A broker's URL; it holds no user name, and one that is there is not repeated.
pub(super) fn broker(text: &str) -> Result<cloud_sync::session::BrokerUrl, String> {
    if without_credentials(text) == text {
        parsed(text)
    } else {
        Err("a broker's URL holds no user name and no password: use username and password_file".to_owned())
    }
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} must be true or false"))
}

pub(super) fn number<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("{text:?} must be a number from {} to {}", range.start(), range.end()))
    }
}

pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| {
        let signed: Option<jiff::SignedDuration> = text.parse().ok();
        let duration = signed.and_then(|signed| Duration::try_from(signed).ok());
        duration.filter(|duration| range.contains(duration)).ok_or_else(|| {
            format!(
                "{text:?} must be a duration from {:?} to {:?}, such as \"2s\"",
                range.start(),
                range.end()
            )
        })
    }
}

/// A size in bytes, or with one of the units that [`UNITS`] has.
pub(super) fn bytes(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<u64, String> {
    move |text| {
        size(text).filter(|bytes| range.contains(bytes)).ok_or_else(|| {
            let (least, most) = (in_units(*range.start()), in_units(*range.end()));
            format!("{text:?} must be a size from {least} to {most}, such as \"64 MiB\"")
        })
    }
}

/// A file that is there.
pub(super) fn file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(path),
        Ok(_) => Err(format!("{text:?} is not a file")),
        Err(error) => Err(format!("{text:?} can't be used: {error}")),
    }
}

pub(super) fn one_of<T: Copy>(choices: &[(&str, T)]) -> impl Fn(&str) -> Result<T, String> {
    move |text| {
        let choice = choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice);
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        choice.ok_or_else(|| format!("{text:?} must be one of {}", names.join(", ")))
    }
}

const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

fn size(text: &str) -> Option<u64> {
    let unit = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (number, factor) = unit.unwrap_or((text, 1));
    number.trim().parse::<u64>().ok()?.checked_mul(factor)
}

fn in_units(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| format!("{bytes} bytes"), |(unit, factor)| format!("{} {unit}", bytes / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_read_in_their_units_and_keep_their_bounds() {
        let limits = 1024..=(4 << 30);
        for (text, expected) in [("64 MiB", 64 << 20), ("2GiB", 2 << 30), ("1 KiB", 1024), ("4096", 4096)] {
            assert_eq!(bytes(limits.clone())(text), Ok(expected));
        }
        for bad in ["", "1023", "5 GiB", "64 MB", "-1", "1.5 GiB", "99999999999999 GiB"] {
            let why = bytes(limits.clone())(bad).unwrap_err();
            assert!(why.contains("from 1 KiB to 4 GiB"), "{why}");
        }
        let range = Duration::from_millis(100)..=Duration::from_secs(3600);
        assert_eq!(duration(range.clone())("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration(range.clone())("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["", "2", "50ms", "2h", "-2s", "soon"] {
            assert!(duration(range.clone())(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_not_repeated() {
        let why = broker("mqtts://me:secret@host").unwrap_err();
        assert!(!why.contains("secret") && why.contains("password_file"), "{why}");
    }

    #[test]
    fn not_a_number_is_in_no_range() {
        assert!(number(0.0..=1.0)("NaN").is_err());
        assert_eq!(number(0.0..=1.0)("0.25"), Ok(0.25));
    }
}
