//! When the configured certificates end.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cloud_sync::session::{TlsFiles, certificates};
use jiff::{SignedDuration, Timestamp};

use super::page::{Finding, Part};
use crate::board::Clock;
use crate::certificate::validity;

/// Before the end, a certificate should be replaced: a fleet takes some weeks.
const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What the certificates of a file are to each other.
#[derive(Clone, Copy, PartialEq)]
enum Set {
    /// Each signs by itself: it is enough that one is good.
    Authorities,
    /// Each is signed by the next: the first that ends breaks it.
    Chain,
}

/// From when and until when.
type Span = (Timestamp, Timestamp);

pub(super) fn examine(files: &TlsFiles, clock: &Clock) -> Part {
    let mut part = Part::new("certificates");
    let now = clock.plausible.then(Timestamp::now);
    let sets = [
        ("authorities", &files.authorities, Set::Authorities, "the system's"),
        ("certificate", &files.certificate, Set::Chain, "none"),
    ];
    for (name, path, set, otherwise) in sets {
        match path {
            Some(path) => add(&mut part, name, path, set, now),
            None => part.fact(name, Some(otherwise.to_owned())),
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

fn add(part: &mut Part, name: &str, path: &Path, set: Set, now: Option<Timestamp>) {
    let shown = path.display();
    let found = match certificates(path) {
        Ok(found) => found,
        Err(error) => return part.findings.push(Finding::problem(error.to_string())),
    };
    let spans: Vec<Span> = found.iter().filter_map(|certificate| validity(certificate)).collect();
    let Some((from, until)) = whole(&spans, set) else {
        return part
            .findings
            .push(Finding::problem(format!("{shown} holds no certificate that can be read")));
    };
    part.fact(name, Some(format!("{shown}, good until {}", until.strftime("%Y-%m-%d"))));
    let unread = found.len() - spans.len();
    if unread > 0 {
        let what = format!("{unread} of {} certificates in {shown} can't be read: replace them", found.len());
        part.findings.push(Finding::warning(what));
    }
    let Some(now) = now else { return };
    let ended = spans.iter().filter(|(_, until)| *until <= now).count();
    if until <= now {
        let at = until.strftime("%Y-%m-%d");
        part.findings.push(Finding::problem(format!("{shown} ended on {at}: replace it")));
    } else if from > now {
        let at = from.strftime("%Y-%m-%d");
        part.findings.push(Finding::problem(format!("{shown} is good from {at} on: check the clock")));
    } else if until.duration_since(now) < SOON {
        let days = until.duration_since(now).as_hours() / 24;
        part.findings.push(Finding::warning(format!("{shown} ends in {days} days: replace it")));
    } else if ended > 0 {
        let what = format!("{ended} of the {} authorities in {shown} have ended: take them out", spans.len());
        part.findings.push(Finding::note(what));
    }
}

/// When the set as a whole is good.
fn whole(spans: &[Span], set: Set) -> Option<Span> {
    let from = spans.iter().map(|(from, _)| *from);
    let until = spans.iter().map(|(_, until)| *until);
    match set {
        Set::Authorities => from.min().zip(until.max()),
        Set::Chain => from.max().zip(until.min()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::tests::{CERTIFICATE, SOONER};
    use crate::cli::doctor::page::Grade;

    fn judged(pem: &str, set: Set, at: &str) -> Vec<Finding> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), pem).unwrap();
        let mut part = Part::new("certificates");
        add(&mut part, "certificate", file.path(), set, Some(at.parse().unwrap()));
        part.findings
    }

    #[test]
    fn a_chain_is_judged_by_its_dates() {
        assert_eq!(judged(CERTIFICATE, Set::Chain, "2100-01-01T00:00:00Z"), []);
        let grade = |at: &str| judged(CERTIFICATE, Set::Chain, at)[0].grade;
        assert_eq!(grade("2020-01-01T00:00:00Z"), Grade::Problem);
        assert_eq!(grade("2126-10-25T00:00:00Z"), Grade::Warning);
        assert_eq!(grade("2127-01-01T00:00:00Z"), Grade::Problem);
    }

    #[test]
    fn one_authority_that_is_good_is_enough_and_a_chain_needs_all() {
        let both = format!("{SOONER}{CERTIFICATE}");
        let between = "2100-01-01T00:00:00Z";
        let authorities = judged(&both, Set::Authorities, between);
        assert_eq!((authorities.len(), authorities[0].grade), (1, Grade::Note));
        assert!(authorities[0].what.starts_with("1 of the 2 authorities"), "{authorities:?}");
        assert_eq!(judged(&both, Set::Chain, between)[0].grade, Grade::Problem);
        assert_eq!(judged(&both, Set::Authorities, "2127-01-01T00:00:00Z")[0].grade, Grade::Problem);
        assert_eq!(judged(&both, Set::Authorities, "2027-01-01T00:00:00Z"), []);

        let odd = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        let found = judged(&format!("{odd}{CERTIFICATE}"), Set::Authorities, between);
        assert!(found.len() == 1 && found[0].what.starts_with("1 of 2 certificates"), "{found:?}");
        assert_eq!(judged(odd, Set::Chain, between)[0].grade, Grade::Problem);
    }
}
