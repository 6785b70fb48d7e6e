//! The whole journey in short, the same on every broker: register, deploy, score, swap, and each row back exactly once.

use std::collections::BTreeMap;
use std::path::Path;

use crate::client::Client;
use crate::data::{self, MODEL};
use crate::process::{Agent, Cloud, Failure};
use crate::site::{adds_up, exported};

/// Windows that are scored by each version.
const WINDOWS: usize = 25;

/// Takes the sample there and its rows back, between a cloud and a device that have not seen it.
pub fn whole(cloud: &Cloud, agent: &Agent, device: &str, directory: &Path) -> Result<(), Failure> {
    let windows = data::test_split()?;
    let client = Client::new(&agent.http);
    let mut expected = BTreeMap::new();
    for version in [1, 2] {
        cloud.register(&data::sample(Some(version)))?;
        cloud.text(&["deploy", &format!("{MODEL}:{version}"), "--device", device])?;
        cloud.wait_for_phase(device, MODEL, version, "active")?;
        for (index, window) in windows.iter().take(WINDOWS).enumerate() {
            let id = format!("{version}-{index}");
            let (answered, _) = client.predict_as(window, Some(&id))?;
            if answered != version {
                return Err(format!("version {answered} answered in place of {version}"));
            }
            expected.insert(id, 1);
        }
    }
    let flushed = cloud.json(&["command", device, "flush", "--timeout", "60s"])?;
    let ledger = &flushed["result"];
    if !adds_up(ledger) || ledger["uploaded"] != expected.len() {
        return Err(format!("{} rows were captured, and the ledger says {ledger}", expected.len()));
    }
    let rows = exported(cloud, &directory.join("exported"))?;
    if rows == expected { Ok(()) } else { Err(format!("not each row came once: {rows:?}")) }
}
