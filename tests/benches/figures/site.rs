//! A cloud and one agent, as processes, and a bundle's way from one to the other.

use std::path::Path;
use std::time::Duration;

use e2e::process::{Agent, Cloud, Failure, wait_until};
use serde_json::Value;

const DEVICE: &str = "bench";

/// Both halves of the product. The agent goes first, so that it never logs a lost cloud.
pub(crate) struct Site {
    pub(crate) agent: Agent,
    pub(crate) cloud: Cloud,
}

impl Site {
    /// Starts both in `directory`, with more arguments for each.
    pub(crate) fn start(directory: &Path, cloud: &[&str], agent: &[&str]) -> Result<Self, Failure> {
        let cloud = Cloud::start(&directory.join("cloud"), 0, 0, cloud)?;
        let agent = Agent::start(&directory.join("agent"), DEVICE, &cloud.mqtt, 0, agent)?;
        Ok(Self { agent, cloud })
    }

    /// Registers a bundle, deploys it and waits until it serves; gives what the cloud then knows of it.
    pub(crate) fn bring(&self, bundle: &Path, name: &str, version: u64) -> Result<Value, Failure> {
        let path = bundle.display().to_string();
        self.cloud.text(&["model", "register", &path, "--name", name])?;
        self.cloud.text(&["deploy", &format!("{name}:{version}"), "--device", DEVICE])?;
        // The agent is asked, and seldom: each question to the cloud is a process, which would take a core from the pull.
        let ready = format!("{}/v2/models/{name}/versions/{version}/ready", self.agent.http);
        wait_until(Duration::from_secs(120), || match ureq::get(&ready).call() {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{name}:{version} does not serve: {error}")),
        })?;
        self.cloud.wait_for_phase(DEVICE, name, version, "active")
    }
}
