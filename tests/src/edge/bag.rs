//! Property bags: `key=value&key=value` as one segment of a topic, each key and value percent-encoded.

use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::process::Failure;

/// All but RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Encodes every character that is not unreserved, as UTF-8.
pub(super) fn escape(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Undoes [`escape`]; a `%` has to begin an escape and the outcome has to be UTF-8.
pub(super) fn unescape(text: &str) -> Result<String, Failure> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        rest = behind;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let code = behind.split_at_checked(2).and_then(|(digits, behind)| {
            rest = behind;
            let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
            u8::from_str_radix(digits, 16).ok()
        });
        bytes.push(code.ok_or_else(|| format!("a % without two digits in {text:?}"))?);
    }
    String::from_utf8(bytes).map_err(|_| format!("{text:?} is not UTF-8 once decoded"))
}

/// The first character that should have been escaped and isn't.
pub(super) fn unescaped(text: &str) -> Option<char> {
    let is_unreserved = |c: char| c.is_ascii_alphanumeric() || "-._~%".contains(c);
    text.chars().find(|c| !is_unreserved(*c))
}

/// Encodes properties in their order.
pub(super) fn encode(properties: &[(&str, &str)]) -> String {
    let pairs = properties.iter().map(|(key, value)| format!("{}={}", escape(key), escape(value)));
    pairs.collect::<Vec<_>>().join("&")
}

/// Decodes a bag; a key that comes twice makes it invalid, as it makes edgeHub drop the message.
pub(super) fn decode(bag: &str) -> Result<BTreeMap<String, String>, Failure> {
    let mut properties = BTreeMap::new();
    for (key, value) in pairs(bag) {
        let key = unescape(key)?;
        if properties.insert(key.clone(), unescape(value.unwrap_or_default())?).is_some() {
            return Err(format!("the property {key:?} comes twice"));
        }
    }
    Ok(properties)
}

/// What edgeHub takes, but no client should send.
pub(super) fn findings(bag: &str) -> Vec<Failure> {
    let mut findings = vec![];
    for (key, value) in pairs(bag) {
        if value.is_none() {
            findings.push(format!("the property {key:?} has no value"));
        }
        // Written as `$.on`, a system key is equally accepted.
        let key = key.strip_prefix("$.").unwrap_or(key);
        for part in [key, value.unwrap_or_default()] {
            if let Some(c) = unescaped(part) {
                findings.push(format!("{c:?} is not escaped in the property bag {bag:?}"));
            }
        }
    }
    findings
}

fn pairs(bag: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let pairs = bag.split('&').filter(|_| !bag.is_empty());
    pairs.map(|pair| pair.split_once('=').map_or((pair, None), |(key, value)| (key, Some(value))))
}
