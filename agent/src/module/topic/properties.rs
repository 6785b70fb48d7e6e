//! The properties of a message, as they stand in its topic: `key=value&key=value`, percent-encoded.
//!
//! Invariant: a key stands once; edgeHub drops a message in which one stands twice.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;

use crate::module::token::percent_encoded;

/// The id that the sender gave the message.
pub const MESSAGE_ID: &str = "$.mid";
/// What ties messages together.
pub const CORRELATION_ID: &str = "$.cid";

/// What the body is.
pub const CONTENT_TYPE: &str = "$.ct";
const OUTPUT: &str = "$.on";
const CONTENT_ENCODING: &str = "$.ce";

/// What the keys of edgeHub's own properties begin with.
const SYSTEM: &str = "$.";

/// System properties in the order in which Microsoft's library writes them; others follow.
const ORDER: [&str; 6] = [OUTPUT, MESSAGE_ID, CORRELATION_ID, "$.uid", CONTENT_TYPE, CONTENT_ENCODING];

/// The properties of a message, system and user, by key. `None` is a key without a value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, Option<String>>);

impl Properties {
    /// The properties of a message for an output.
    pub fn of_output(output: &str) -> Self {
        let mut properties = Self::default();
        properties.set(OUTPUT, output);
        properties
    }

    /// Reads them out of a topic. What is no percent-encoding stands for itself, a part without a key says nothing,
    /// and of two values the later one holds.
    pub fn decode(bag: &str) -> Self {
        let parts = bag.strip_prefix('?').unwrap_or(bag).split('&');
        let pair = |part: &str| match part.split_once('=') {
            Some((key, value)) => (decoded(key), Some(decoded(value))),
            None => (decoded(part), None),
        };
        Self(parts.map(pair).filter(|(key, _)| !key.is_empty()).collect())
    }

    /// As they stand in a topic: system properties first.
    pub fn encode(&self) -> String {
        let rank = |key: &str| {
            let known = ORDER.iter().position(|known| *known == key);
            (!key.starts_with(SYSTEM), known.unwrap_or(ORDER.len()))
        };
        let mut pairs: Vec<_> = self.0.iter().collect();
        pairs.sort_by_key(|(key, _)| rank(key));
        let encoded = pairs.into_iter().map(|(key, value)| {
            let key = percent_encoded(key);
            value.as_ref().map_or_else(|| key.clone(), |value| format!("{key}={}", percent_encoded(value)))
        });
        encoded.collect::<Vec<_>>().join("&")
    }

    /// Sets a property, with or without a value, in place of one with this key. An empty key sets none.
    pub fn set<'a>(&mut self, key: &str, value: impl Into<Option<&'a str>>) {
        if !key.is_empty() {
            self.0.insert(key.to_owned(), value.into().map(str::to_owned));
        }
    }

    /// Says what the body is. Routes can look into it only if it is `application/json` and `utf-8`.
    pub fn set_content(&mut self, content_type: &str, encoding: Option<&str>) {
        self.set(CONTENT_TYPE, content_type);
        match encoding {
            Some(encoding) => self.set(CONTENT_ENCODING, encoding),
            None => drop(self.0.remove(CONTENT_ENCODING)),
        }
    }

    /// The value of a key; `None` also where it has none.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_deref()
    }

    /// What ties this message to others.
    pub fn correlation_id(&self) -> Option<&str> {
        self.get(CORRELATION_ID)
    }

    /// The id that the sender gave it.
    pub fn message_id(&self) -> Option<&str> {
        self.get(MESSAGE_ID)
    }

    /// The properties that are the application's own, sorted by key.
    pub fn user(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let pairs = self.0.iter().map(|(key, value)| (key.as_str(), value.as_deref()));
        pairs.filter(|(key, _)| !key.starts_with(SYSTEM))
    }
}

/// A `+` is itself: only forms of the web write a blank so.
fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hostile_bags_are_read_as_far_as_they_make_sense() {
        let read = |bag| Properties::decode(bag).0.into_iter().collect::<Vec<_>>();
        let pair = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
        assert!(read("").is_empty());
        assert_eq!(read("&&=lost&a=1&a=2"), [pair("a", Some("2"))]);
        assert_eq!(read("?a=b=c"), [pair("a", Some("b=c"))]);
        assert_eq!(read("%zz=%&b=%e2%82"), [pair("%zz", Some("%")), pair("b", Some("\u{fffd}"))]);
    }

    proptest! {
        #[test]
        fn properties_survive_the_topic(
            pairs in prop::collection::btree_map(".{1,20}", prop::option::of(".{0,40}"), 0..8)
        ) {
            let properties = Properties(pairs);
            let bag = properties.encode();
            prop_assert!(!bag.contains(['+', '#', '/', '\0', ' ']));
            prop_assert_eq!(Properties::decode(&bag), properties);
        }

        #[test]
        fn no_bag_is_an_error(bag in "[a%&=$.?+0-9zä]{0,60}") {
            let properties = Properties::decode(&bag);
            prop_assert_eq!(Properties::decode(&properties.encode()), properties);
        }
    }
}
