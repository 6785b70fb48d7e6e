//! The module's twin: desired properties, which the service writes, and reported ones, which the module writes.
//!
//! Each change of a section raises its version by one. A patch merges: objects recursively, null deletes, all else
//! replaces.

use serde_json::{Map, Value, json};

use crate::process::Failure;

/// Most bytes of JSON of a patch, and of a whole section in IoT Hub.
const MAX_BYTES: usize = 32 * 1024;
/// Deepest object, the patch itself not counted.
const MAX_DEPTH: usize = 10;
const MAX_KEY_BYTES: usize = 1024;
const MAX_STRING_BYTES: usize = 4096;
/// Integers lie from -2^52 to 2^52-1.
const MAX_INTEGER: i64 = (1 << 52) - 1;

/// A twin.
pub(super) struct Twin {
    desired: Value,
    desired_version: u64,
    reported: Value,
    reported_version: u64,
}

/// Why reported properties are refused: the status of the answer, and the reason.
#[derive(Debug)]
pub(super) struct Refused(pub(super) u16, pub(super) Failure);

impl Twin {
    pub(super) fn new() -> Self {
        Self { desired: json!({}), desired_version: 1, reported: json!({}), reported_version: 1 }
    }

    /// What a read of the twin answers.
    pub(super) fn document(&self) -> Value {
        json!({
            "desired": with_version(&self.desired, self.desired_version),
            "reported": with_version(&self.reported, self.reported_version),
        })
    }

    pub(super) fn reported(&self) -> &Value {
        &self.reported
    }

    pub(super) fn desired_version(&self) -> u64 {
        self.desired_version
    }

    pub(super) fn reported_version(&self) -> u64 {
        self.reported_version
    }

    /// Merges a patch into the desired properties; gives the patch as the module gets it.
    pub(super) fn patch_desired(&mut self, patch: &Value) -> Value {
        merge(&mut self.desired, patch);
        self.desired_version += 1;
        with_version(patch, self.desired_version)
    }

    /// Replaces the desired properties; gives the patch as the module gets it: what is gone is null in it.
    pub(super) fn replace_desired(&mut self, desired: &Value) -> Value {
        self.patch_desired(&difference(&self.desired, desired))
    }

    /// Begins anew, as when the module's identity is deleted and made again: versions go backwards.
    pub(super) fn recreate(&mut self, desired: Value) {
        *self = Self { desired, ..Self::new() };
    }

    /// Merges what the module reports, by the rules of edgeHub's ReportedPropertiesValidator.
    pub(super) fn report(&mut self, body: &[u8]) -> Result<(), Refused> {
        let patch: Value = serde_json::from_slice(body)
            .map_err(|error| Refused(500, format!("reported properties that are no JSON: {error}")))?;
        let refused = |why: String| Refused(400, format!("reported properties: {why}"));
        if !patch.is_object() {
            return Err(refused("not an object".to_owned()));
        }
        check(&patch, 0).map_err(refused)?;
        let bytes = patch.to_string().len();
        if bytes > MAX_BYTES {
            return Err(refused(format!("{bytes} bytes of JSON, {MAX_BYTES} are allowed")));
        }
        let mut whole = self.reported.clone();
        merge(&mut whole, &patch);
        let bytes = whole.to_string().len();
        if bytes > MAX_BYTES {
            return Err(refused(format!("{bytes} bytes in all, IoT Hub allows {MAX_BYTES}")));
        }
        self.reported = whole;
        self.reported_version += 1;
        Ok(())
    }
}

/// Merges a patch into a section.
fn merge(section: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *section = patch.clone();
        return;
    };
    if !section.is_object() {
        *section = json!({});
    }
    let Value::Object(section) = section else { return };
    for (key, value) in patch {
        if value.is_null() {
            section.remove(key);
        } else {
            merge(section.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}

/// The patch that makes `to` of `from`.
fn difference(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else { return to.clone() };
    let gone = from.keys().filter(|key| !to.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = to.iter().filter(|(key, value)| from.get(*key) != Some(value)).map(|(key, value)| {
        let change = from.get(key).map_or_else(|| value.clone(), |before| difference(before, value));
        (key.clone(), change)
    });
    Value::Object(changed.chain(gone).collect())
}

fn with_version(section: &Value, version: u64) -> Value {
    let mut section: Map<String, Value> = section.as_object().cloned().unwrap_or_default();
    section.insert("$version".to_owned(), version.into());
    Value::Object(section)
}

fn check(value: &Value, depth: usize) -> Result<(), Failure> {
    match value {
        Value::Object(_) if depth > MAX_DEPTH => Err(format!("deeper than {MAX_DEPTH} objects")),
        Value::Object(object) => object.iter().try_for_each(|(key, value)| {
            check_key(key)?;
            check(value, depth + 1)
        }),
        Value::Array(array) if array.contains(&Value::Null) => Err("a null within an array".to_owned()),
        Value::Array(array) => array.iter().try_for_each(|value| check(value, depth)),
        Value::String(text) if text.len() > MAX_STRING_BYTES => {
            Err(format!("a string of {} bytes, {MAX_STRING_BYTES} are allowed", text.len()))
        }
        Value::Number(number) if !number.is_f64() => {
            let is_in_range = number.as_i64().is_some_and(|n| (-MAX_INTEGER - 1..=MAX_INTEGER).contains(&n));
            if is_in_range { Ok(()) } else { Err(format!("the integer {number} is out of range")) }
        }
        _ => Ok(()),
    }
}

fn check_key(key: &str) -> Result<(), Failure> {
    let is_wrong = |c: char| c.is_control() || c.is_whitespace() || ".$#".contains(c);
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        Err(format!("a key of {} bytes", key.len()))
    } else if let Some(c) = key.chars().find(|c| is_wrong(*c)) {
        Err(format!("{c:?} in the key {key:?}"))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replacement_is_a_patch_with_nulls() {
        let mut twin = Twin::new();
        twin.patch_desired(&json!({"a": {"b": 1, "c": [1, 2]}, "d": "x"}));
        let patch = twin.replace_desired(&json!({"a": {"c": [3], "e": {"f": true}}}));
        assert_eq!(patch, json!({"a": {"b": null, "c": [3], "e": {"f": true}}, "d": null, "$version": 3}));
        assert_eq!(twin.document()["desired"], json!({"a": {"c": [3], "e": {"f": true}}, "$version": 3}));
    }

    #[test]
    fn reported_properties_keep_to_the_rules() {
        let nested = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!({ "k": inner }));
        let refused = [
            (json!([]), 400),
            (nested(12), 400),
            (json!({"a.b": 1}), 400),
            (json!({"a b": 1}), 400),
            (json!({"$a": 1}), 400),
            (json!({ "k".repeat(1025): 1 }), 400),
            (json!({"s": "x".repeat(4097)}), 400),
            (json!({"n": 1_u64 << 52}), 400),
            (json!({"n": -(1_i64 << 52) - 1}), 400),
            (json!({"n": u64::MAX}), 400),
            (json!({"a": [[null]]}), 400),
            (json!({"a": vec!["x".repeat(4000); 9]}), 400),
        ];
        for (patch, status) in refused {
            let Err(Refused(given, _)) = Twin::new().report(patch.to_string().as_bytes()) else {
                panic!("not refused: {patch}");
            };
            assert_eq!(given, status);
        }
        assert!(matches!(Twin::new().report(b"{"), Err(Refused(500, _))));
        let mut twin = Twin::new();
        let taken = [
            nested(11),
            json!({"n": [MAX_INTEGER, -MAX_INTEGER - 1, 0.5], "s": "x".repeat(4096), "\u{e4}-_": null}),
            json!({"k": null, "s": null}),
        ];
        for patch in taken {
            twin.report(patch.to_string().as_bytes()).unwrap();
        }
        assert_eq!(twin.reported(), &json!({"n": [MAX_INTEGER, -MAX_INTEGER - 1, 0.5]}));
    }
}
