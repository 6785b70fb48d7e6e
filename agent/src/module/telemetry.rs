//! Captured rows as JSON, for a module that has no registry: what goes out on the output `telemetry`.
//!
//! A message is `{"stream", "rows": [...]}`; a row is what [`Row`] is, in camelCase, with `sequence`, `time` (RFC 3339,
//! UTC), and `inputs` and `outputs` as objects of nested lists by name. A stream and a sequence number name a row for
//! ever, so a consumer can drop what comes twice. A row whose lists would not fit into a message carries its tensors as
//! `{"datatype", "shape", "base64"}` in their place, little-endian.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use cloud_sync::rows::{Column, Row};
use engine::{DataType, binary};
use jiff::Timestamp;
use serde_json::{Map, Value, json, value::RawValue};

use super::outbox::MAX_MESSAGE_BYTES;
use super::topic::{MESSAGE_ID, Properties, TopicTooLong, Topics};
use crate::body::Nested;

/// Where the rows go out.
const OUTPUT: &str = "telemetry";

/// Room for the topic and the message's own keys.
const ENVELOPE_BYTES: usize = 2 * 1024;

/// Rows in one message.
#[derive(Debug)]
pub struct Batch {
    /// The message's topic.
    pub topic: String,
    /// Its body.
    pub body: Bytes,
    /// The number of the last row in it.
    pub last: u64,
}

/// The first of `rows`, as many as fit into one message; `None` where there are none. Rows come with their numbers,
/// encoded as they are in the spool. One that can't be read goes out as `{"sequence", "error"}`.
///
/// # Errors
/// Never for a stream and a module as they are named.
pub fn batch(topics: &Topics, stream: &str, rows: &[(u64, Vec<u8>)]) -> Result<Option<Batch>, TopicTooLong> {
    let (mut together, mut size) = (Vec::new(), ENVELOPE_BYTES);
    let (mut first, mut last) = (0, 0);
    for (sequence, bytes) in rows {
        let mut text = object(*sequence, bytes, Form::Lists).to_string();
        if ENVELOPE_BYTES + text.len() > MAX_MESSAGE_BYTES {
            text = object(*sequence, bytes, Form::Base64).to_string();
        }
        size += text.len() + 1;
        if size > MAX_MESSAGE_BYTES && !together.is_empty() {
            break;
        }
        if together.is_empty() {
            first = *sequence;
        }
        last = *sequence;
        together.extend(RawValue::from_string(text));
    }
    if together.is_empty() {
        return Ok(None);
    }
    let mut properties = Properties::of_output(OUTPUT);
    properties.set(MESSAGE_ID, format!("{stream}-{first}-{last}").as_str());
    properties.set_content("application/json", Some("utf-8"));
    let body = Message { stream, rows: &together };
    let body = Bytes::from(serde_json::to_vec(&body).unwrap_or_default());
    Ok(Some(Batch { topic: topics.event(&properties)?, body, last }))
}

#[derive(serde::Serialize)]
struct Message<'a> {
    stream: &'a str,
    rows: &'a [Box<RawValue>],
}

/// How tensors are written.
#[derive(Clone, Copy)]
enum Form {
    Lists,
    Base64,
}

fn object(sequence: u64, bytes: &[u8], form: Form) -> Value {
    let row = match Row::decode(bytes) {
        Ok(row) => row,
        Err(error) => return json!({ "sequence": sequence, "error": error.to_string() }),
    };
    let time = i64::try_from(row.wall_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    json!({
        "sequence": sequence,
        "model": row.model,
        "version": row.version,
        "correlationId": row.correlation_id,
        "requestId": row.request_id,
        "bootId": row.boot_id,
        "monotonicNs": row.monotonic_ns,
        "time": time.map(|time| time.to_string()),
        "timeSure": row.wall_sure,
        "inputs": by_name(&row.inputs, form),
        "outputs": by_name(&row.outputs, form),
    })
}

fn by_name(columns: &[Column], form: Form) -> Map<String, Value> {
    columns.iter().map(|column| (column.name.clone(), value(column, form))).collect()
}

fn value(column: &Column, form: Form) -> Value {
    let lists = || {
        let data_type = DataType::from_oip_name(&column.datatype)?;
        let shape = column.shape.iter().map(|length| usize::try_from(*length).ok()).collect::<Option<_>>()?;
        let tensor = binary::read(data_type, shape, &column.data).ok()?;
        serde_json::to_value(Nested(&tensor)).ok()
    };
    let lists = if matches!(form, Form::Lists) { lists() } else { None };
    lists.unwrap_or_else(|| {
        let Column { datatype, shape, data, .. } = column;
        json!({ "datatype": datatype, "shape": shape, "base64": BASE64.encode(data) })
    })
}

#[cfg(test)]
mod tests {
    use serde_bytes::ByteBuf;

    use super::*;

    fn encoded(elements: usize) -> Vec<u8> {
        let data =
            ByteBuf::from((0..elements).flat_map(|n| (n as f32 / 7.0).to_le_bytes()).collect::<Vec<_>>());
        let column = Column { name: "x".into(), datatype: "FP32".into(), shape: vec![elements as u64], data };
        let row = Row {
            model: "m".parse().unwrap(),
            version: 3,
            correlation_id: "c".into(),
            request_id: "r".into(),
            boot_id: "b".into(),
            monotonic_ns: 5,
            wall_ms: 1_795_364_461_000,
            wall_sure: true,
            inputs: vec![column.clone()],
            outputs: vec![Column { name: "y".into(), ..column }],
        };
        row.encode().unwrap()
    }

    fn rows(elements: usize, count: u64) -> Vec<(u64, Vec<u8>)> {
        (1..=count).map(|sequence| (sequence, encoded(elements))).collect()
    }

    #[test]
    fn rows_go_out_as_lists_and_as_many_as_fit() {
        let topics = Topics::new("d", "m");
        let all = rows(100, 1000);
        let (mut after, mut seen) = (0, Vec::new());
        while let Some(batch) = batch(&topics, "s", &all[after..]).unwrap() {
            assert!(batch.topic.len() + batch.body.len() <= MAX_MESSAGE_BYTES);
            let body: Value = serde_json::from_slice(&batch.body).unwrap();
            let rows = body["rows"].as_array().unwrap().clone();
            assert_eq!(rows[0]["inputs"]["x"].as_array().unwrap().len(), 100);
            assert_eq!(rows[0]["time"], "2026-11-22T16:21:01Z");
            seen.extend(rows.iter().map(|row| row["sequence"].as_u64().unwrap()));
            assert_eq!(seen.last(), Some(&batch.last));
            after = batch.last as usize;
        }
        assert!(seen.iter().copied().eq(1..=1000));
    }

    #[test]
    fn the_largest_row_fits_and_a_damaged_one_is_told() {
        let large = encoded(12_000);
        assert!(large.len() > cloud_sync::limits::MAX_ROW_BYTES - 4096);
        let topics = Topics::new("d", "m");
        let batch = batch(&topics, "s", &[(7, large), (8, b"nonsense".to_vec())]).unwrap().unwrap();
        assert!(batch.body.len() <= MAX_MESSAGE_BYTES && batch.last == 8);
        let body: Value = serde_json::from_slice(&batch.body).unwrap();
        let data = body["rows"][0]["inputs"]["x"]["base64"].as_str().map(|text| BASE64.decode(text).unwrap());
        let lists = body["rows"][0]["inputs"]["x"].as_array().map(Vec::len);
        assert!(data.is_some_and(|data| data.len() == 48_000) || lists == Some(12_000));
        assert!(body["rows"][1]["error"].is_string());
    }
}
