//! A site whose device is behind a bad link, and what has to come to pass there all the same.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::client::Client;
use crate::data::{self, MODEL};
use crate::mosquitto::Mosquitto;
use crate::process::{Agent, Cloud, Failure, wait_until};
use crate::site::{self, DEVICE, PATIENCE, start_cloud};
use crate::toxic::Link;

/// A broker, a cloud, and a device behind a link of ours.
pub struct Remote {
    /// Where everything lies; left behind for whoever looks at a failure.
    pub directory: PathBuf,
    /// The broker.
    pub broker: Mosquitto,
    /// The link between the device and the broker.
    pub link: Link,
    /// The cloud.
    pub cloud: Cloud,
    /// The device.
    pub agent: Agent,
}

impl Remote {
    /// Starts it in `target/e2e/NAME`, the agent with more variables in its environment, and registers both versions of the
    /// sample.
    pub fn start(name: &str, environment: &[(&str, &str)]) -> Result<Self, Failure> {
        let directory = crate::fresh_directory(&format!("e2e/{name}"))?;
        let broker = Mosquitto::start(&directory.join("broker"))?;
        let link = Link::start(&broker.url)?;
        let cloud = start_cloud(&directory, &broker.url)?;
        let agent = start_agent(&directory, &link.url, environment)?;
        let remote = Self { directory, broker, link, cloud, agent };
        remote.cloud.register(&data::sample(Some(1)))?;
        remote.cloud.register(&data::sample(Some(2)))?;
        Ok(remote)
    }

    /// Asks the agent to end, starts it again, and waits until it serves what it served.
    pub fn restart_agent(&mut self, environment: &[(&str, &str)]) -> Result<(), Failure> {
        self.agent.process.terminate()?;
        self.agent = start_agent(&self.directory, &self.link.url, environment)?;
        let client = self.client();
        wait_until(PATIENCE, || match client.get("/v2/health/ready")?.status {
            200 => Ok(()),
            status => Err(format!("ready answers {status}")),
        })
    }

    /// A client of the agent that runs now.
    pub fn client(&self) -> Client {
        Client::new(&self.agent.http)
    }

    /// Deploys a version and waits until it answers.
    pub fn deploy(&self, version: u64, longest: Duration) -> Result<(), Failure> {
        self.cloud.text(&["deploy", &format!("{MODEL}:{version}"), "--device", DEVICE])?;
        let client = self.client();
        wait_until(longest, || {
            let about = client.get(&format!("/v2/models/{MODEL}"))?;
            let serves = about.json()["versions"][0] == version.to_string().as_str();
            if serves { Ok(()) } else { Err(format!("version {version} does not serve: {}", about.text)) }
        })
    }

    /// Scores one request for each of `rows`, under ids that [`Remote::all_went_up`] looks for.
    pub fn score(&self, rows: Range<u64>) -> Result<(), Failure> {
        let client = self.client();
        let windows = data::test_split()?;
        let mut chosen = rows.zip(windows.iter().cycle());
        chosen.try_for_each(|(row, window)| client.predict_as(window, Some(&format!("row-{row}"))).map(drop))
    }

    /// Waits until all of `rows`, and no others, are in the cloud, and sees that each is there once and none elsewhere.
    pub fn all_went_up(&self, rows: u64, longest: Duration) -> Result<(), Failure> {
        let client = self.client();
        wait_until(longest, || {
            let count = |name: &str| client.metric(&format!("edgewise_rows_{name}"));
            let counts = (count("captured_total")?, count("uploaded_total")?, count("held")?);
            // So none was dropped or lost.
            if counts == (rows, rows, 0) {
                Ok(())
            } else {
                Err(format!("captured, uploaded, held: {counts:?}"))
            }
        })?;
        let exported = site::exported(&self.cloud, &self.directory.join("rows"))?;
        let twice: Vec<_> = exported.iter().filter(|(_, times)| **times != 1).collect();
        if !twice.is_empty() || exported.len() as u64 != rows {
            return Err(format!("of {rows} rows {} are there, more than once: {twice:?}", exported.len()));
        }
        Ok(())
    }
}

fn start_agent(directory: &Path, link: &str, environment: &[(&str, &str)]) -> Result<Agent, Failure> {
    // Rows go up soon, so that tests need not wait for them.
    let mut variables = vec![("EDGEWISE_UPLOAD_INTERVAL", "100ms")];
    variables.extend(environment);
    Agent::start_with(&directory.join("agent"), DEVICE, link, 0, &[], &variables)
}
