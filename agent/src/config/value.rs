//! From a text to a value, in words that say what was expected: for the configuration, and for the twin of a module.

use std::fmt::Display;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use cloud_sync::session::BrokerUrl;

use super::mistake::without_credentials;

/// What MQTT can carry.
const MAX_PASSWORD_BYTES: u64 = 65_535;

/// How often a link may be proven alive. Shorter costs bytes on a metered link; a longer one many networks cut.
pub(crate) const KEEP_ALIVE: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(1200);

/// What the type itself reads, in its own words where it refuses.
pub(crate) fn parsed<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

/// A broker's URL; it holds no user name, and one that is there is not repeated.
pub(crate) fn broker(text: &str) -> Result<BrokerUrl, String> {
    if without_credentials(text) == text {
        parsed(text)
    } else {
        Err("a broker's URL holds no user name and no password: they have keys of their own".to_owned())
    }
}

/// What goes to a broker elsewhere is encrypted, unless `insecure`, which `switch` sets.
pub(crate) fn encrypted(broker: &BrokerUrl, insecure: bool, switch: &str) -> Result<(), String> {
    if broker.tls || broker.is_loopback() || insecure {
        return Ok(());
    }
    Err(format!(
        "{broker} is unencrypted and not on this device: use mqtts://, or set {switch} = true in a closed network"
    ))
}

pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} must be true or false"))
}

pub(crate) fn number<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("{text:?} must be a number from {} to {}", range.start(), range.end()))
    }
}

/// Numbers, separated by commas, at most so many.
pub(crate) fn numbers<T>(range: RangeInclusive<T>, most: usize) -> impl Fn(&str) -> Result<Vec<T>, String>
where
    T: FromStr + PartialOrd + Display,
{
    let number = number(range);
    move |text| match text.split(',').count() {
        given if given > most => Err(format!("there are {given} numbers, {most} are possible")),
        _ => text.split(',').map(|text| number(text.trim())).collect(),
    }
}

pub(crate) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&str) -> Result<Duration, String> {
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
pub(crate) fn bytes(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<u64, String> {
    move |text| {
        size(text).filter(|bytes| range.contains(bytes)).ok_or_else(|| {
            let (least, most) = (in_units(*range.start()), in_units(*range.end()));
            format!("{text:?} must be a size from {least} to {most}, such as \"64 MiB\"")
        })
    }
}

/// A size of something that is held in memory.
pub(crate) fn in_memory(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<usize, String> {
    let bytes = bytes(range);
    move |text| {
        usize::try_from(bytes(text)?).map_err(|_| format!("{text:?} is more than this device can address"))
    }
}

/// A file that is there.
pub(crate) fn file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(path),
        Ok(_) => Err(format!("{text:?} is not a file")),
        Err(error) => Err(format!("{text:?} can't be used: {error}")),
    }
}

/// The password in a file, without the line end that editors leave.
pub(crate) fn password(text: &str) -> Result<String, String> {
    let describe = |error: std::io::Error| format!("reading {text:?}: {error}");
    let mut password = String::new();
    let file = std::fs::File::open(file(text)?).map_err(describe)?;
    file.take(MAX_PASSWORD_BYTES + 1).read_to_string(&mut password).map_err(describe)?;
    if password.len() as u64 > MAX_PASSWORD_BYTES {
        return Err(format!("{text:?} is larger than {MAX_PASSWORD_BYTES} bytes"));
    }
    password.truncate(password.trim_end_matches(['\r', '\n']).len());
    if password.is_empty() { Err(format!("{text:?} holds no password")) } else { Ok(password) }
}

pub(crate) fn one_of<T: Copy>(choices: &[(&str, T)]) -> impl Fn(&str) -> Result<T, String> {
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

/// A size as it is written: 64 MiB.
pub(crate) fn in_units(bytes: u64) -> String {
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
        assert!(!why.contains("secret") && why.contains("keys of their own"), "{why}");
    }

    #[test]
    fn each_of_several_numbers_is_in_the_range() {
        let read = numbers(1..=64, 3);
        assert_eq!(read("4, 8,64"), Ok(vec![4, 8, 64]));
        for bad in ["4,", "0", "4,65", "1,2,3,4"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn not_a_number_is_in_no_range() {
        assert!(number(0.0..=1.0)("NaN").is_err());
        assert_eq!(number(0.0..=1.0)("0.25"), Ok(0.25));
    }
}
