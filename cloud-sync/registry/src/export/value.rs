//! One value of a column, for text formats.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMillisecondType, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use serde_json::{Number, Value};

use crate::sink::readable;

/// The value of a row as JSON. What JSON has no number for (NaN, infinities) is a string; bytes are text or `0x…`.
pub(super) fn json(array: &ArrayRef, row: usize) -> Value {
    macro_rules! primitive {
        ($type:ty) => {
            array.as_primitive::<$type>().value(row)
        };
    }
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::UInt8 => primitive!(UInt8Type).into(),
        DataType::UInt16 => primitive!(UInt16Type).into(),
        DataType::UInt32 => primitive!(UInt32Type).into(),
        DataType::UInt64 => primitive!(UInt64Type).into(),
        DataType::Int8 => primitive!(Int8Type).into(),
        DataType::Int16 => primitive!(Int16Type).into(),
        DataType::Int32 => primitive!(Int32Type).into(),
        DataType::Int64 => primitive!(Int64Type).into(),
        // By way of its shortest text, so that 0.1 stays 0.1 and does not become 0.10000000149011612.
        DataType::Float32 => number(primitive!(Float32Type).to_string()),
        DataType::Float64 => number(primitive!(Float64Type).to_string()),
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::Binary => readable(array.as_binary::<i32>().value(row)).into(),
        DataType::Timestamp(..) => {
            time(u64::try_from(primitive!(TimestampMillisecondType)).unwrap_or(0)).into()
        }
        other => format!("unreadable column of type {other}").into(),
    }
}

/// The value of a row as it stands in CSV.
pub(super) fn text(array: &ArrayRef, row: usize) -> String {
    match json(array, row) {
        Value::Null => String::new(),
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// A time as UTC in ISO 8601, without a zone.
pub(super) fn time(ms: u64) -> String {
    let at = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.unwrap_or(jiff::Timestamp::UNIX_EPOCH).strftime("%Y-%m-%dT%H:%M:%S%.6f").to_string()
}

fn number(text: String) -> Value {
    match text.parse::<f64>().ok().and_then(Number::from_f64) {
        Some(number) => Value::Number(number),
        None => Value::String(text),
    }
}
