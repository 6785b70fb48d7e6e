//! Spans as OTLP has them in JSON: `ExportTraceServiceRequest` of
//! <https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>, ids in hexadecimal, 64-bit numbers as text.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use serde_json::{Value as Json, json};

use super::{Kind, Record, Value};

/// The numbers of `SpanKind` and of `StatusCode`.
const INTERNAL: u8 = 1;
const SERVER: u8 = 2;
const CONSUMER: u8 = 5;
const ERROR: u8 = 2;

/// The body of a request that tells of `records`, from the agent on `device`.
pub(super) fn body(device: &str, records: &[Record]) -> Vec<u8> {
    let version = env!("CARGO_PKG_VERSION");
    let resource = [
        ("service.name", "edgewise-agent"),
        ("service.version", version),
        ("service.instance.id", device),
        ("device.id", device),
    ];
    let resource = resource.map(|(name, text)| attribute(name, json!({ "stringValue": text })));
    let spans: Vec<Json> = records.iter().flat_map(spans).collect();
    let request = json!({ "resourceSpans": [{
        "resource": { "attributes": resource },
        "scopeSpans": [{ "scope": { "name": "edgewise-agent", "version": version }, "spans": spans }],
    }]});
    request.to_string().into_bytes()
}

/// A request's span, and those of its parts.
fn spans(record: &Record) -> Vec<Json> {
    let kind = match record.kind {
        Kind::Server => SERVER,
        Kind::Consumer => CONSUMER,
    };
    let attributes = record.attributes.iter().map(|(name, value)| {
        let value = match value {
            Value::Text(text) => json!({ "stringValue": text }),
            Value::Number(number) => json!({ "intValue": number.to_string() }),
        };
        attribute(name, value)
    });
    let status = record.error.as_ref().map(|error| json!({ "code": ERROR, "message": error }));
    let whole = json!({
        "kind": kind,
        "attributes": attributes.collect::<Json>(),
        "status": status.unwrap_or_else(|| json!({})),
    });
    let whole = span(record, record.span_id, record.parent, &record.name, Duration::ZERO..record.took, whole);
    let parts = record.parts.iter().zip(1..).map(|((name, time), number)| {
        // As random as the span's own, and nobody else's in this trace.
        let id = record.span_id.wrapping_add(number);
        span(record, id, Some(record.span_id), name, time.clone(), json!({ "kind": INTERNAL }))
    });
    [whole].into_iter().chain(parts).collect()
}

/// What every span tells, beside `more`, which is an object.
fn span(
    record: &Record,
    id: u64,
    parent: Option<u64>,
    name: &str,
    time: Range<Duration>,
    mut more: Json,
) -> Json {
    let since = record.start.and_then(|start| start.duration_since(SystemTime::UNIX_EPOCH).ok());
    let at = |after: Duration| (since.unwrap_or_default() + after).as_nanos().to_string();
    let fields = [
        ("traceId", format!("{:032x}", record.trace_id)),
        ("spanId", format!("{id:016x}")),
        ("parentSpanId", parent.map_or(String::new(), |parent| format!("{parent:016x}"))),
        ("traceState", record.state.clone()),
        ("name", name.to_owned()),
        ("startTimeUnixNano", at(time.start)),
        ("endTimeUnixNano", at(time.end)),
    ];
    if let Some(object) = more.as_object_mut() {
        object.extend(fields.map(|(key, text)| (key.to_owned(), text.into())));
    }
    more
}

fn attribute(name: &str, value: Json) -> Json {
    json!({ "key": name, "value": value })
}
