//! When a certificate is good.
//!
//! rustls reads these dates and does not tell them, and a library for all of X.509 is eight more of them for two
//! dates. So the way to them is walked here, as RFC 5280, section 4.1 describes it.

use std::path::Path;

use jiff::Timestamp;

/// From when and until when a certificate in DER is good.
pub fn validity(der: &[u8]) -> Option<(Timestamp, Timestamp)> {
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

/// When the first certificate of a chain ends, which breaks it; `None` where none can be read. Blocking.
pub fn chain_until(file: &Path) -> Option<Timestamp> {
    let chain = cloud_sync::session::certificates(file).ok()?;
    chain.iter().filter_map(|certificate| validity(certificate)).map(|(_, until)| until).min()
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
pub(crate) mod tests {
    use super::*;

    /// Made by openssl for a hundred years, so that one date is of each kind.
    pub(crate) const CERTIFICATE: &str = "\
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
    /// As that one, and ends in 2076.
    pub(crate) const SOONER: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBbjCCARWgAwIBAgIUJ0OljXKSHMQIi+/a+Et7QBW1A4gwCgYIKoZIzj0EAwIw\n\
DDEKMAgGA1UEAwwBdDAgFw0yNjExMjMwNDI0MDdaGA8yMDc2MDMwNTA0MjQwN1ow\n\
DDEKMAgGA1UEAwwBdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABE5pXU2kL6BM\n\
lyjRjGw8DQIZfF2kw48tHQ+ghHw7FXrvws9CxNVxX7W8AfPVmbPEEmrZwk0nIa+w\n\
bcDs4bvGjm6jUzBRMB0GA1UdDgQWBBR2U31PflN+tm8E9WjJtKFbQj2JgDAfBgNV\n\
HSMEGDAWgBR2U31PflN+tm8E9WjJtKFbQj2JgDAPBgNVHRMBAf8EBTADAQH/MAoG\n\
CCqGSM49BAMCA0cAMEQCIBJVnzd2vxfny/1+C5xnnsgF78H109YaBbHQS8JFkDLI\n\
AiAxi8LsE7z51SCs3BCf4ON/aep2SgCrB0knlS1LCl/+GQ==\n\
-----END CERTIFICATE-----\n";
    const FROM: &str = "2026-11-23T00:52:16Z";
    const UNTIL: &str = "2126-10-30T00:52:16Z";

    #[test]
    fn dates_are_read_as_openssl_wrote_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), CERTIFICATE).unwrap();
        let der = cloud_sync::session::certificates(file.path()).unwrap();
        assert_eq!(validity(&der[0]), Some((FROM.parse().unwrap(), UNTIL.parse().unwrap())));
        for end in 0..der[0].len() {
            assert_eq!(validity(&der[0][..end]), None, "cut off at {end}");
        }
        assert_eq!(chain_until(file.path()), Some(UNTIL.parse().unwrap()));
        assert_eq!(chain_until(Path::new("/nothing/here")), None);
    }
}
