//! What comes over MQTT: messages, batches of rows, and the names in topics and URLs.

use cloud_sync::bundle::BundlePath;
use cloud_sync::contract::{
    AgentInfo, Chunk, Clock, Codec, Collect, Command, Desired, DesiredModel, Fetch, Hardware, Ledger,
    Message, ModelSettings, Phase, Presence, Receipt, Reply, Reported, ReportedModel, Telemetry, Transfer,
    Want, decode, encode,
};
use cloud_sync::digest::Digest;
use cloud_sync::limits::{MAX_BATCH_BYTES, MAX_BATCH_ROWS};
use cloud_sync::name::{DeviceId, ModelName, ModelVersion};
use cloud_sync::rows::{Column, Row, pack, unpack};
use cloud_sync::session::BrokerUrl;
use cloud_sync::topic::Root;
use edgewise_agent::fetch::Source;
use edgewise_agent::module::topic::Topics;
use edgewise_agent::module::workload::Endpoint;
use serde_bytes::ByteBuf;

/// The first byte says which message the rest is.
pub(super) fn messages(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    match kind % 9 {
        0 => again::<Presence>(body),
        1 => again::<Desired>(body),
        2 => again::<Reported>(body),
        3 => again::<Fetch>(body),
        4 => again::<Chunk>(body),
        5 => {
            if let Ok(batch) = decode::<Telemetry>(body) {
                unpacked(batch.codec, &batch.rows);
                assert!(!batch.ledger.adds_up() || batch.ledger.held <= batch.ledger.captured);
            }
            again::<Telemetry>(body);
        }
        6 => again::<Receipt>(body),
        7 => again::<Command>(body),
        _ => again::<Reply>(body),
    }
}

/// What is read can be sent on, but where it only just fitted, and is then read as the same.
fn again<M: Message>(body: &[u8]) {
    let Ok(message) = decode::<M>(body) else { return };
    let Ok(bytes) = encode(&message) else { return };
    let read = decode::<M>(&bytes).and_then(|message| encode(&message));
    assert_eq!(read.ok(), Some(bytes));
}

pub(super) fn message_seeds() -> Vec<Vec<u8>> {
    let digest = Digest::of(b"seed");
    let ledger = Ledger {
        captured: 10,
        uploaded: 4,
        held: 3,
        dropped: [("spool_full".to_owned(), 2)].into(),
        lost: 1,
    };
    let collect = Some(Collect { enabled: true, rate: 0.5 });
    let settings =
        ModelSettings { provider: Some("tract".to_owned()), threads: Some(1), collect, ..Default::default() };
    let model = |name: ModelName| DesiredModel {
        name,
        version: 2,
        digest,
        size: 70_000,
        deployment: 1,
        signature: Some(ByteBuf::from([7; 64])),
        settings: settings.clone(),
    };
    let reported = |name: ModelName| ReportedModel {
        name,
        version: 2,
        phase: Phase::RolledBack,
        why: Some("golden sample 0".to_owned()),
        active: Some(1),
        previous: None,
        engine: Some("tract".to_owned()),
        provider: Some("tract".to_owned()),
        memory_bytes: Some(1 << 20),
        transfer: Some(Transfer::default()),
    };
    let agent =
        AgentInfo { version: "0.1.0".to_owned(), boot_id: "b".to_owned(), state: "running".to_owned() };
    let (codec, rows) = packed_rows(3);
    let clock = Some(Clock { boot_id: "b".to_owned(), monotonic_ns: 5, wall_ms: 6 });
    let name: Option<ModelName> = "load".parse().ok();
    let arguments = [("model".to_owned(), serde_json::json!({"nested": [1, -2, 0.5, null, true, "x"]}))];
    let bodies = [
        encode(&Presence { online: true, boot_id: "b".to_owned(), agent_version: "0.1.0".to_owned() }),
        encode(&Desired { revision: 3, models: name.clone().into_iter().map(model).collect(), collect }),
        encode(&Reported {
            revision: 3,
            models: name.into_iter().map(reported).collect(),
            agent,
            hardware: Hardware {
                architecture: "aarch64".to_owned(),
                celsius: Some(60),
                ..Default::default()
            },
            ledger: ledger.clone(),
        }),
        encode(&Fetch { wants: vec![Want { digest, offset: 0 }, Want { digest, offset: 65_536 }] }),
        encode(&Chunk { digest, offset: 0, total: 4, bytes: ByteBuf::from(*b"seed") }),
        encode(&Telemetry {
            stream: "s".to_owned(),
            first_sequence: 1,
            after: 0,
            codec,
            rows: ByteBuf::from(rows),
            ledger,
            clock,
        }),
        encode(&Receipt { stream: "s".to_owned(), durable_through: 3, again: false }),
        encode(&Command {
            id: "1".to_owned(),
            name: "ping".to_owned(),
            arguments: arguments.into_iter().collect(),
            deadline: 9,
        }),
        encode(&Reply { id: "1".to_owned(), status: 200, result: serde_json::json!({"models": [[]]}) }),
    ];
    (0..).zip(bodies).filter_map(|(kind, body)| Some([vec![kind], body.ok()?].concat())).collect()
}

/// The first byte says how the rest is packed.
pub(super) fn rows(data: &[u8]) {
    let Some((codec, packed)) = data.split_first() else { return };
    unpacked(if codec % 2 == 0 { Codec::Cbor } else { Codec::CborDeflate }, packed);
}

fn unpacked(codec: Codec, packed: &[u8]) {
    let Ok(rows) = unpack(codec, packed) else { return };
    assert!(rows.len() <= MAX_BATCH_ROWS);
    assert!(rows.iter().map(|row| row.len()).sum::<usize>() <= MAX_BATCH_BYTES.max(packed.len()));
    for row in rows.iter().filter_map(|bytes| Row::decode(bytes).ok()) {
        let Ok(bytes) = row.encode() else { continue };
        assert_eq!(Row::decode(&bytes).ok(), Some(row));
    }
}

pub(super) fn row_seeds() -> Vec<Vec<u8>> {
    let seed = |count| {
        let (codec, packed) = packed_rows(count);
        [vec![u8::from(codec == Codec::CborDeflate)], packed].concat()
    };
    [1, 40].into_iter().map(seed).collect()
}

fn packed_rows(count: u64) -> (Codec, Vec<u8>) {
    let column = |name: &str, datatype: &str, data: &[u8]| Column {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: vec![1],
        data: ByteBuf::from(data),
    };
    let row = |at: u64| {
        let row = Row {
            model: "load".parse().ok()?,
            version: 2,
            correlation_id: format!("c-{at}"),
            request_id: "r".to_owned(),
            boot_id: "b".to_owned(),
            monotonic_ns: at,
            wall_ms: 1_700_000_000_000 + at,
            wall_sure: true,
            inputs: vec![column("load", "FP32", &[0, 0, 128, 63])],
            outputs: vec![column("label", "BYTES", b"\x03\0\0\0low")],
        };
        row.encode().ok()
    };
    let rows: Vec<Vec<u8>> = (0..count).filter_map(row).collect();
    pack(&rows).unwrap_or((Codec::Cbor, Vec::new()))
}

/// Texts that are checked once and then carried by type. Each that is taken is read back from how it is shown.
pub(super) fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = text.parse::<ModelName>() {
        assert_eq!(name.to_string().parse(), Ok(name));
    }
    if let Ok(device) = text.parse::<DeviceId>() {
        assert_eq!(device.to_string().parse(), Ok(device));
    }
    if let Ok(version) = text.parse::<ModelVersion>() {
        assert_eq!(version.to_string().parse(), Ok(version));
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
    if let Ok(url) = text.parse::<BrokerUrl>() {
        assert_eq!(url.to_string().parse(), Ok(url));
    }
    if let Ok(source) = text.parse::<Source>() {
        let whole = String::from(source.clone());
        assert_eq!(whole.parse(), Ok(source));
    }
    if let Ok(endpoint) = text.parse::<Endpoint>() {
        assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
    }
    if let Ok(path) = BundlePath::new(text) {
        assert!(!path.as_str().split('/').any(|part| matches!(part, "" | "." | "..")));
        assert!(std::path::Path::new(path.as_str()).is_relative());
    }
    if let (Ok(root), Ok(device)) = (text.parse::<Root>(), "d".parse::<DeviceId>()) {
        for kind in cloud_sync::topic::Kind::ALL {
            assert_eq!(root.parse(&root.topic(&device, kind)), Some((device.clone(), kind)));
        }
    }
    let _ = Root::default().parse(text);
    let _ = Topics::new("edge-1", "agent").parse(text);
}

pub(super) fn name_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "power-demand",
        "Gateway_7.local",
        "load:3",
        "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        "mqtts://broker.example:8884",
        "mqtt://[::1]:1883/",
        "https://user:secret@models.example:8443/load.bundle?sig=1",
        "file:///srv/a%20b.bundle",
        "unix:///var/run/iotedge/workload.sock",
        "http://127.0.0.1:15580",
        "weights/part-1.bin",
        "edgewise/v1/plant-7",
        "edgewise/v1/default/gateway-1/desired",
        "devices/edge-1/modules/agent/inputs/readings/%24.mid=1&a=b%20c&%24.cid=x",
        "$iothub/methods/POST/ping/?$rid=7",
        "$iothub/twin/res/200/?$rid=b-3",
        "$iothub/twin/PATCH/properties/desired/?$version=12",
    ];
    texts.into_iter().map(Into::into).collect()
}
