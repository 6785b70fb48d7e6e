//! A whole site for a test: Mosquitto, the cloud and one device, each a process that can be killed and started again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::client::Client;
use crate::data::{self, MODEL};
use crate::files;
use crate::mosquitto::Mosquitto;
use crate::process::{Agent, Cloud, Failure, wait_until};

/// The device of a site.
pub const DEVICE: &str = "device-1";

/// How long what the processes do among themselves may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A broker, a cloud and a device.
pub struct Site {
    /// Where everything lies; left behind for whoever looks at a failure.
    pub directory: PathBuf,
    /// The broker.
    pub broker: Mosquitto,
    /// The cloud.
    pub cloud: Cloud,
    /// The device.
    pub agent: Agent,
    /// What the device's environment says beside the usual.
    variables: Vec<(String, String)>,
}

/// Starts the cloud of a site on `broker`.
pub fn start_cloud(directory: &Path, broker: &str) -> Result<Cloud, Failure> {
    Cloud::start(&directory.join("cloud"), 0, 0, &["--mqtt", broker])
}

/// Starts the agent of a site on `broker`.
pub fn start_agent(directory: &Path, broker: &str) -> Result<Agent, Failure> {
    start_agent_with(directory, broker, &[])
}

/// As [`start_agent`], with variables of its own.
fn start_agent_with(
    directory: &Path,
    broker: &str,
    variables: &[(String, String)],
) -> Result<Agent, Failure> {
    // Rows are written and go up soon, so that tests need not wait for them.
    let mut environment =
        vec![("EDGEWISE_UPLOAD_INTERVAL", "100ms"), ("EDGEWISE_COLLECT_WRITE_INTERVAL", "50ms")];
    environment.extend(variables.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    Agent::start_with(&directory.join("agent"), DEVICE, broker, 0, &[], &environment)
}

impl Site {
    /// Starts everything in `target/e2e/NAME`.
    pub fn start(name: &str) -> Result<Self, Failure> {
        Self::start_with(name, &[])
    }

    /// As [`Site::start`], with variables of the device's own.
    pub fn start_with(name: &str, variables: &[(&str, &str)]) -> Result<Self, Failure> {
        Self::start_in(crate::fresh_directory(&format!("e2e/{name}"))?, variables)
    }

    /// As [`Site::start_with`], in a directory that is there.
    pub fn start_in(directory: PathBuf, variables: &[(&str, &str)]) -> Result<Self, Failure> {
        let variables: Vec<(String, String)> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let broker = Mosquitto::start(&directory.join("broker"))?;
        let cloud = start_cloud(&directory, &broker.url)?;
        let agent = start_agent_with(&directory, &broker.url, &variables)?;
        Ok(Self { directory, broker, cloud, agent, variables })
    }

    /// A client of the agent that runs now.
    pub fn client(&self) -> Client {
        Client::new(&self.agent.http)
    }

    /// Kills the agent as a power cut would, starts it again and waits until it serves what it served.
    pub fn restart_agent(&mut self) -> Result<(), Failure> {
        self.agent.process.kill();
        self.agent = start_agent_with(&self.directory, &self.broker.url, &self.variables)?;
        let client = self.client();
        wait_until(PATIENCE, || match client.get("/v2/health/ready")?.status {
            200 => Ok(()),
            status => Err(format!("ready answers {status}")),
        })
    }

    /// Kills the cloud as a power cut would, and starts it again.
    pub fn restart_cloud(&mut self) -> Result<(), Failure> {
        self.cloud.process.kill();
        self.cloud = start_cloud(&self.directory, &self.broker.url)?;
        Ok(())
    }

    /// Registers the sample's version 1 or 2 and waits until it serves; gives what the device reports of it.
    pub fn bring(&self, version: u64) -> Result<Value, Failure> {
        self.cloud.register(&data::sample(Some(version)))?;
        self.deploy(version)
    }

    /// Deploys a version of the sample and waits until it serves.
    pub fn deploy(&self, version: u64) -> Result<Value, Failure> {
        self.cloud.text(&["deploy", &format!("{MODEL}:{version}"), "--device", DEVICE])?;
        self.cloud.wait_for_phase(DEVICE, MODEL, version, "active")
    }

    /// Waits until a version of the sample answers requests.
    pub fn wait_for_version(&self, version: u64) -> Result<(), Failure> {
        let client = self.client();
        wait_until(PATIENCE, || {
            let about = client.get(&format!("/v2/models/{MODEL}"))?;
            let serves = about.json()["versions"][0] == version.to_string().as_str();
            if serves { Ok(()) } else { Err(format!("version {version} does not serve: {}", about.text)) }
        })
    }

    /// Has the device upload everything; gives its ledger.
    pub fn flush(&self) -> Result<Value, Failure> {
        let flushed = self.cloud.json(&["command", DEVICE, "flush", "--timeout", "60s"])?;
        let ledger = flushed["result"].clone();
        if ledger["held"] == 0 { Ok(ledger) } else { Err(format!("rows are still held: {ledger}")) }
    }

    /// Waits until a metric of the agent is as it should be.
    pub fn wait_for_metric(&self, name: &str, is_right: impl Fn(u64) -> bool) -> Result<u64, Failure> {
        let client = self.client();
        wait_until(PATIENCE, || {
            let value = client.metric(name)?;
            if is_right(value) { Ok(value) } else { Err(format!("{name} is {value}")) }
        })
    }

    /// How often each request id stands in what was exported as JSON lines.
    pub fn exported(&self, name: &str) -> Result<BTreeMap<String, u64>, Failure> {
        exported(&self.cloud, &self.directory.join(name))
    }
}

/// How often each request id stands in what a cloud exports of the sample as JSON lines into `output`.
pub fn exported(cloud: &Cloud, output: &Path) -> Result<BTreeMap<String, u64>, Failure> {
    let path = output.display().to_string();
    cloud.text(&["data", "export", "--model", MODEL, "--format", "jsonl", "-o", &path])?;
    let mut ids = BTreeMap::new();
    for file in files::below(output)? {
        for line in files::read(&file)?.lines() {
            let row: Value = serde_json::from_str(line).map_err(|error| format!("{error}: {line}"))?;
            let id = row["request_id"].as_str().ok_or_else(|| format!("a row without an id: {line}"))?;
            *ids.entry(id.to_owned()).or_default() += 1;
        }
    }
    Ok(ids)
}

/// Rows that a ledger has as dropped, for whatever reason.
pub fn dropped(ledger: &Value) -> u64 {
    ledger["dropped"].as_object().into_iter().flatten().filter_map(|(_, rows)| rows.as_u64()).sum()
}

/// Whether a ledger has every captured row in exactly one place.
pub fn adds_up(ledger: &Value) -> bool {
    let number = |key: &str| ledger[key].as_u64().unwrap_or(0);
    number("captured") == number("uploaded") + number("held") + dropped(ledger) + number("lost")
}
