//! What lies on the device's own disk: configuration, certificates, and the files that keep its state.

use std::path::Path;

use cloud_sync::contract::ModelSettings;
use cloud_sync::digest::Digest;
use edgewise_agent::commands::once::Once;
use edgewise_agent::config::{self, Sources};
use edgewise_agent::deploy::{Deployment, Target};
use edgewise_agent::fetch::Source;
use edgewise_agent::spool::{DropReason, Spool, SpoolOptions};

const CONFIG: &str = r#"
device = "gateway-7"
data = "/tmp"
[cloud]
broker = "mqtt://127.0.0.1:1883"
keep_alive = "30s"
[http]
listen = "127.0.0.1:8000"
max_body_bytes = "16 MiB"
[collect]
rate = 0.25
[[route]]
input = "a/b"
model = "load"
output = "c"
"#;

/// A configuration file.
pub(super) fn config(data: &[u8]) {
    let Ok(directory) = tempfile::tempdir() else { return };
    let file = directory.path().join("agent.toml");
    if std::fs::write(&file, data).is_err() {
        return;
    }
    let sources = Sources { file: Some(file), host_name: Some("host".to_owned()), ..Sources::default() };
    let loaded = config::load(&sources);
    if let Err(mistakes) = &loaded.config {
        assert!(!mistakes.to_string().is_empty());
    }
}

pub(super) fn config_seeds() -> Vec<Vec<u8>> {
    [CONFIG, config::DEFAULTS].map(Into::into).into()
}

/// A certificate in DER.
pub(super) fn certificate(data: &[u8]) {
    if let Some((from, until)) = edgewise_agent::certificate::validity(data) {
        let _ = (from.to_string(), until.to_string());
    }
}

pub(super) fn certificate_seeds() -> Vec<Vec<u8>> {
    // As far as the dates, which is as far as is read.
    const HEAD: &[u8] = b"\x30\x2c\x30\x2a\xa0\x03\x02\x01\x02\x02\x01\x01\x30\x00\x30\x00\x30\x1e";
    vec![[HEAD, b"\x17\x0d261123005216Z\x18\x0d2126103000521Z"].concat()]
}

/// The two slots of a spool's ledger, each as long as the first two bytes say of the first. Their digests are put right.
pub(super) fn spool(data: &[u8]) {
    let Some((length, rest)) = data.split_first_chunk() else { return };
    let slots = rest.split_at_checked(usize::from(u16::from_le_bytes(*length))).unwrap_or((rest, &[]));
    let Ok(directory) = tempfile::tempdir() else { return };
    let path = directory.path().join("spool");
    let ledger = [slots.0, slots.1].map(slot).concat();
    if std::fs::create_dir(&path).is_err() || std::fs::write(path.join("ledger"), ledger).is_err() {
        return;
    }
    let Ok(mut spool) = Spool::open(&path, SpoolOptions::default()) else { return };
    let before = spool.ledger();
    spool.shed(DropReason::QueueFull, 3);
    assert_eq!(spool.ledger().captured, before.captured + 3);
    let _ = (spool.receipt(u64::MAX), spool.close());
}

/// A slot as the ledger writes it: the digest, a blank, the record, blanks to the end.
fn slot(record: &[u8]) -> Vec<u8> {
    let record = record.trim_ascii();
    let record = record.get(..record.len().min(4000)).unwrap_or_default().trim_ascii();
    let mut slot = [blake3::hash(record).to_hex().as_bytes(), b" ", record].concat();
    slot.resize(4095, b' ');
    slot.push(b'\n');
    slot
}

pub(super) fn spool_seeds() -> Vec<Vec<u8>> {
    let record = |generation: u64| {
        format!(
            r#"{{"generation":{generation},"stream":"s","next":9,"head":4,"skipped":1,"uploaded":2,"lost":0,"dropped":{{"spool_full":1,"queue_full":5}}}}"#
        )
    };
    let first = record(7);
    let length = u16::try_from(first.len()).unwrap_or(0).to_le_bytes();
    vec![[length.as_slice(), first.as_bytes(), record(8).as_bytes()].concat()]
}

/// A model's deployment, and the record of commands.
pub(super) fn deployment(data: &[u8]) {
    if let Ok(deployment) = serde_cbor::from_slice::<Deployment>(data)
        && let Ok(bytes) = serde_cbor::to_vec(&deployment)
    {
        assert!(serde_cbor::from_slice::<Deployment>(&bytes).is_ok());
    }
    let Ok(directory) = tempfile::tempdir() else { return };
    let path = directory.path().join("commands");
    if std::fs::write(&path, data).is_ok() {
        once(&path);
    }
}

fn once(path: &Path) {
    let Ok(mut once) = Once::open(path.to_owned()) else { return };
    let _ = once.know("1");
    let _ = once.begin("2");
    let again = Once::open(path.to_owned());
    assert!(again.is_ok());
}

pub(super) fn deployment_seeds() -> Vec<Vec<u8>> {
    let target = Target {
        version: 3,
        digest: Digest::of(b"x"),
        size: Some(7),
        source: Source::Registry,
        settings: ModelSettings::default(),
        deployment: 2,
    };
    let (deployment, _) = Deployment::new(target);
    serde_cbor::to_vec(&deployment).into_iter().collect()
}
