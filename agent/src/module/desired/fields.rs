//! One object of the desired properties, key by key: keeps what is wrong by its path instead of stopping at it.

use std::ops::RangeInclusive;

use cloud_sync::limits::bounded_text;
use serde_json::Value;

use super::Mistake;
use crate::config::nearest;
use crate::module::merge::Object;

/// An object that is being read. Keys with a dollar are the hub's own and passed over; null is absent.
pub(super) struct Fields<'a> {
    path: String,
    object: &'a Object,
    mistakes: &'a mut Vec<Mistake>,
}

impl<'a> Fields<'a> {
    /// The value at `path` as an object with these keys. `None`: it is none, and that is kept. Unknown keys are kept
    /// as mistakes.
    pub(super) fn of(
        value: &'a Value,
        path: &str,
        known: &[&str],
        mistakes: &'a mut Vec<Mistake>,
    ) -> Option<Self> {
        match value {
            Value::Object(object) => Some(Self::new(object, path, known, mistakes)),
            _ => {
                mistakes.push(mistake(path, "must be an object"));
                None
            }
        }
    }

    pub(super) fn new(
        object: &'a Object,
        path: &str,
        known: &[&str],
        mistakes: &'a mut Vec<Mistake>,
    ) -> Self {
        let fields = Self { path: path.to_owned(), object, mistakes };
        for (key, _) in entries(object).filter(|(key, _)| !known.contains(&key.as_str())) {
            let error = match nearest(key, known) {
                Some(nearest) => format!("unknown key; did you mean {nearest}?"),
                None => format!("unknown key; known are {}", known.join(", ")),
            };
            fields.mistakes.push(mistake(&joined(path, key), error));
        }
        fields
    }

    /// The value of a key that must be there. `None`: it is missing or wrong, and that is kept.
    pub(super) fn value<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.optional(key, read)?;
        if value.is_none() {
            self.wrong(key, "is missing");
        }
        value
    }

    /// The value of a key that may be left open. `None`: it is wrong, and that is kept.
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<Option<T>> {
        match self.get(key).map(read) {
            None => Some(None),
            Some(Ok(value)) => Some(Some(value)),
            Some(Err(error)) => {
                self.wrong(key, error);
                None
            }
        }
    }

    /// As [`Fields::optional`], for what is read in parts and keeps its mistakes itself.
    pub(super) fn nested<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&Value, &str, &mut Vec<Mistake>) -> Option<T>,
    ) -> Option<Option<T>> {
        match self.get(key) {
            None => Some(None),
            Some(value) => read(value, &joined(&self.path, key), self.mistakes).map(Some),
        }
    }

    /// Whether two keys that only make sense together are both there or both not; else keeps that.
    pub(super) fn together(&mut self, one: &str, other: &str) -> bool {
        let lone = match (self.get(one), self.get(other)) {
            (Some(_), None) => one,
            (None, Some(_)) => other,
            _ => return true,
        };
        self.wrong(lone, format!("{one} and {other} must be given together"));
        false
    }

    /// Keeps a mistake at a key.
    pub(super) fn wrong(&mut self, key: &str, error: impl Into<String>) {
        self.mistakes.push(mistake(&joined(&self.path, key), error));
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }
}

/// The entries of an object that are the operator's.
pub(super) fn entries(object: &Object) -> impl Iterator<Item = (&String, &Value)> {
    object.iter().filter(|(key, value)| !key.starts_with('$') && !value.is_null())
}

pub(super) fn mistake(path: &str, error: impl Into<String>) -> Mistake {
    Mistake { path: bounded_text(path), error: bounded_text(error) }
}

pub(super) fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Text that `read` understands.
pub(super) fn text<T>(
    read: impl FnOnce(&str) -> Result<T, String>,
) -> impl FnOnce(&Value) -> Result<T, String> {
    |value| read(value.as_str().ok_or("must be a text")?)
}

pub(super) fn boolean(value: &Value) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| "must be true or false".to_owned())
}

/// A number without a fraction, however it is written.
pub(super) fn whole(range: RangeInclusive<u64>) -> impl Fn(&Value) -> Result<u64, String> {
    move |value| {
        // As far as a double counts exactly.
        let exact = |number: &f64| number.fract() == 0.0 && (0.0..=9_007_199_254_740_992.0).contains(number);
        let number = value.as_u64().or_else(|| value.as_f64().filter(exact).map(|number| number as u64));
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| format!("must be a whole number from {} to {}", range.start(), range.end()))
    }
}

/// As [`whole`], for counts that are small.
pub(super) fn small(range: RangeInclusive<u32>) -> impl Fn(&Value) -> Result<u32, String> {
    move |value| {
        let number = whole(u64::from(*range.start())..=u64::from(*range.end()))(value)?;
        u32::try_from(number).map_err(|error| error.to_string())
    }
}

/// A list of at most so many values.
pub(super) fn several<T>(
    most: usize,
    read: impl Fn(&Value) -> Result<T, String>,
) -> impl FnOnce(&Value) -> Result<Vec<T>, String> {
    move |value| match value.as_array() {
        Some(values) if values.len() <= most => values.iter().map(read).collect(),
        _ => Err(format!("must be a list of at most {most}")),
    }
}

/// A share, from 0 to 1.
pub(super) fn share(value: &Value) -> Result<f64, String> {
    let number = value.as_f64().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "must be a number from 0 to 1".to_owned())
}
