//! When the configured certificates end.
//!
//! rustls reads these dates and does not tell them, and a library for all of X.509 is eight more of them for two
//! dates. So the way to them is walked here, as RFC 5280, section 4.1 describes it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cloud_sync::session::{TlsFiles, certificates};
use jiff::{SignedDuration, Timestamp};

use super::page::{Finding, Part};
use crate::board::Clock;

/// Before the end, a certificate should be replaced: a fleet takes some weeks.
const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

pub(super) fn examine(files: &TlsFiles, clock: &Clock) -> Part {
    let mut part = Part::new("certificates");
    let now = clock.plausible.then(Timestamp::now);
    for (name, path) in [("authorities", &files.authorities), ("certificate", &files.certificate)] {
        match path {
            Some(path) => add(&mut part, name, path, now),
            None if name == "authorities" => part.fact(name, Some("the system's".to_owned())),
            None => part.fact(name, Some("none".to_owned())),
        }
    }
    if let Some(key) = &files.key
        && key.metadata().is_ok_and(|metadata| metadata.mode() & 0o007 != 0)
    {
        let what = format!(
            "every user can read the key {path}: give it to the agent's own group, then chmod 640 {path}",
            path = key.display()
        );
        part.findings.push(Finding::warning(what));
    }
    part
}

fn add(part: &mut Part, name: &str, path: &Path, now: Option<Timestamp>) {
    let shown = path.display();
    let found = match certificates(path) {
        Ok(found) => found,
        Err(error) => return part.findings.push(Finding::problem(error.to_string())),
    };
    // The first that ends breaks the chain.
    let spans = found.iter().filter_map(|certificate| validity(certificate));
    let Some((from, until)) = spans.min_by_key(|(_, until)| *until) else {
        return part
            .findings
            .push(Finding::problem(format!("{shown} holds no certificate that can be read")));
    };
    part.fact(name, Some(format!("{shown}, good until {}", until.strftime("%Y-%m-%d"))));
    let Some(now) = now else { return };
    if until <= now {
        let at = until.strftime("%Y-%m-%d");
        part.findings.push(Finding::problem(format!("{shown} ended on {at}: replace it")));
    } else if from > now {
        let at = from.strftime("%Y-%m-%d");
        part.findings.push(Finding::problem(format!("{shown} is good from {at} on: check the clock")));
    } else if until.duration_since(now) < SOON {
        let days = until.duration_since(now).as_hours() / 24;
        part.findings.push(Finding::warning(format!("{shown} ends in {days} days: replace it")));
    }
}

/// From when and until when a certificate in DER is good.
fn validity(der: &[u8]) -> Option<(Timestamp, Timestamp)> {
    let (SEQUENCE, certificate, _) = element(der)? else { return None };
    let (SEQUENCE, mut rest, _) = element(certificate)? else { return None };
    if let (VERSION, _, after) = element(rest)? {
        rest = after;
    }
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (SEQUENCE, dates, _) = element(rest)? else { return None };
    let (kind, from, rest) = element(dates)?;
    let (until_kind, until, _) = element(rest)?;
    Some((time(kind, from)?, time(until_kind, until)?))
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The first element of some DER: its tag, its content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        // So many bytes of length follow; no certificate is larger than three can say.
        0x81..=0x83 => {
            let (length, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

/// `YYMMDDHHMMSSZ`, whose years are 1950 to 2049, or `YYYYMMDDHHMMSSZ`.
fn time(kind: u8, text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let text = match kind {
        UTC_TIME if text.as_bytes().first()? < &b'5' => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let (date, time) = text.strip_suffix('Z')?.split_at_checked(8)?;
    format!("{date}T{time}Z").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::page::Grade;

    /// Made by openssl for a hundred years, so that one date is of each kind.
    const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBXTCCAQKgAwIBAgIBATAKBggqhkjOPQQDAjAMMQowCAYDVQQDDAF0MCAXDTI2\n\
MTEyMzAwNTIxNloYDzIxMjYxMDMwMDA1MjE2WjAMMQowCAYDVQQDDAF0MFkwEwYH\n\
KoZIzj0CAQYIKoZIzj0DAQcDQgAEzxLw27hypXeVdcP8psTWgw7SqizDpPfWHjFp\n\
hmd+fj62GWmTnTpbjREmhksSgyt3f/nxuK+flwtfhG1bHYwa2aNTMFEwHQYDVR0O\n\
BBYEFNr8Pw1DrT7jDraNyv9yWPJcXKTnMB8GA1UdIwQYMBaAFNr8Pw1DrT7jDraN\n\
yv9yWPJcXKTnMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSQAwRgIhAMFX\n\
K4+aqvOYWiqz3v4IVc55kiawCl3IbkFBaq7iIb/kAiEA81JgXmzELwbLVGfHwEfV\n\
0s4XFX0SkULNoIXvr8+yKug=\n\
-----END CERTIFICATE-----\n";
    const FROM: &str = "2026-11-23T00:52:16Z";
    const UNTIL: &str = "2126-10-30T00:52:16Z";

    fn judged(at: &str) -> Vec<Finding> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), CERTIFICATE).unwrap();
        let mut part = Part::new("certificates");
        add(&mut part, "certificate", file.path(), Some(at.parse().unwrap()));
        part.findings
    }

    #[test]
    fn dates_are_read_as_openssl_wrote_them_and_judged() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), CERTIFICATE).unwrap();
        let der = certificates(file.path()).unwrap();
        assert_eq!(validity(&der[0]), Some((FROM.parse().unwrap(), UNTIL.parse().unwrap())));
        for end in 0..der[0].len() {
            assert_eq!(validity(&der[0][..end]), None, "cut off at {end}");
        }

        assert_eq!(judged("2100-01-01T00:00:00Z"), []);
        let grade = |at: &str| judged(at)[0].grade;
        assert_eq!(grade("2020-01-01T00:00:00Z"), Grade::Problem);
        assert_eq!(grade("2126-10-25T00:00:00Z"), Grade::Warning);
        assert_eq!(grade("2127-01-01T00:00:00Z"), Grade::Problem);
    }
}
