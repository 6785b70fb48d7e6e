//! A module of IoT Edge for a test: the scripted edge device and the agent on it, which can be killed and started again.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cloud_sync::bundle::Bundle;
use serde_json::{Value, json};

use crate::client::Client;
use crate::data::{self, MODEL, Window};
use crate::edge::{Edge, Output, Times};
use crate::files;
use crate::process::{Agent, Cloud, Failure, wait_until};
use crate::site::PATIENCE;

/// How long a method's caller waits.
pub const METHOD: Duration = Duration::from_secs(20);

/// An edge device and the agent on it.
pub struct Module {
    /// Where everything lies; left behind for whoever looks at a failure.
    pub directory: PathBuf,
    /// What is around the agent.
    pub edge: Edge,
    /// The agent's environment; it holds from the next start on.
    pub environment: Vec<(&'static str, String)>,
    agent: Option<Agent>,
}

impl Module {
    /// An edge device in `target/e2e/module-NAME` on which the agent does not run yet.
    pub fn new(name: &str, times: Times) -> Result<Self, Failure> {
        let directory = crate::fresh_directory(&format!("e2e/module-{name}"))?;
        let edge = Edge::start(&directory.join("edge"), times)?;
        let mut environment = edge.environment();
        // Rows leave soon, so that tests need not wait for them.
        environment.push(("EDGEWISE_UPLOAD_INTERVAL", "100ms".to_owned()));
        Ok(Self { directory, edge, environment, agent: None })
    }

    /// Starts all of it, with version 1 of the sample from a file, and waits until it serves.
    pub fn start(name: &str) -> Result<Self, Failure> {
        let mut module = Self::new(name, Times::default())?;
        module.edge.set_desired(&json!({"models": {MODEL: module.bundle(1)?}}));
        module.run()?;
        module.wait_for_active(1)?;
        Ok(module)
    }

    /// Starts the agent.
    pub fn run(&mut self) -> Result<(), Failure> {
        let environment: Vec<(&str, &str)> =
            self.environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.agent = Some(Agent::start_module(&self.directory.join("agent"), &environment)?);
        Ok(())
    }

    /// Sets a variable of the agent's environment, for its next start.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.environment.retain(|(known, _)| *known != name);
        self.environment.push((name, value.to_owned()));
    }

    /// Ends the agent as a power cut would.
    pub fn kill(&mut self) {
        self.agent = None;
    }

    /// Asks the agent to end, which it has to do in order and within 10 s.
    pub fn stop(&mut self) -> Result<(), Failure> {
        let told = Instant::now();
        let code = self.agent_mut()?.process.terminate()?;
        let took = told.elapsed();
        self.agent = None;
        if code == 0 && took < Duration::from_secs(10) {
            Ok(())
        } else {
            Err(format!("the agent ended with {code} after {took:?}"))
        }
    }

    /// Whether the agent still runs.
    pub fn is_running(&mut self) -> bool {
        self.agent_mut().is_ok_and(|agent| agent.process.wait(Duration::ZERO).is_none())
    }

    /// A client of the agent that runs now.
    pub fn client(&self) -> Result<Client, Failure> {
        let agent = self.agent.as_ref().ok_or("the agent does not run")?;
        Ok(Client::new(&agent.http))
    }

    /// All that the agent has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("agent/agent.log")).unwrap_or_default()
    }

    /// Waits until the agent has logged something `count` times.
    pub fn wait_for_log(&self, text: &str, count: usize) -> Result<(), Failure> {
        wait_until(PATIENCE, || {
            let found = self.log().matches(text).count();
            if found >= count { Ok(()) } else { Err(format!("{text:?} is {found} times in the log")) }
        })
    }

    /// Waits until a metric of the agent is as it should be.
    pub fn wait_for_metric(&self, name: &str, is_right: impl Fn(u64) -> bool) -> Result<u64, Failure> {
        let client = self.client()?;
        wait_until(PATIENCE, || {
            let value = client.metric(name)?;
            if is_right(value) { Ok(value) } else { Err(format!("{name} is {value}")) }
        })
    }

    /// Waits until the twin says that a version of the sample serves, and is what is wanted.
    pub fn wait_for_active(&self, version: u64) -> Result<Value, Failure> {
        self.edge.wait_for_reported(|reported| {
            let model = &reported["models"][MODEL];
            model["version"] == version && model["active"] == version && model["phase"] == "active"
        })
    }

    /// Waits until a version of the sample answers over HTTP.
    pub fn wait_for_serving(&self, version: u64, window: &Window) -> Result<(), Failure> {
        let client = self.client()?;
        wait_until(PATIENCE, || match client.predict(window)? {
            (given, _) if given == version => Ok(()),
            (given, _) => Err(format!("version {given} answers, not {version}")),
        })
    }

    /// Waits until the twin says that it follows this version of what is desired; gives what it says of that.
    pub fn wait_for_applied(&self, version: u64) -> Result<Value, Failure> {
        let applied = |reported: &Value| reported["config"]["appliedVersion"] == version;
        Ok(self.edge.wait_for_reported(applied)?["config"].clone())
    }

    /// Writes a version of the sample as a `.bundle` file; gives what the twin says to have it.
    pub fn bundle(&self, version: u64) -> Result<Value, Failure> {
        self.bundle_of(&data::sample(Some(version)), version)
    }

    /// As [`Module::bundle`], of any bundle.
    pub fn bundle_of(&self, source: &Path, version: u64) -> Result<Value, Failure> {
        let path = self.directory.join(format!("{MODEL}-{version}.bundle"));
        let bundle = Bundle::open(source).map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        bundle.write_archive(&mut bytes, |_| ()).map_err(|error| error.to_string())?;
        files::write(&path, bytes)?;
        Ok(json!({
            "version": version,
            "digest": bundle.digest().to_string(),
            "size": bundle.manifest().size(),
            "source": format!("file://{}", path.display()),
        }))
    }

    /// Starts a registry beside the edge that has versions 1 and 2 of the sample.
    pub fn registry(&self, name: &str) -> Result<Cloud, Failure> {
        let cloud = Cloud::start(&self.directory.join(name), 0, 0, &[])?;
        for version in [1, 2] {
            cloud.register(&data::sample(Some(version)))?;
        }
        Ok(cloud)
    }

    /// Routes numbered messages to an input, each with its number as its id.
    pub fn send(&self, input: &str, numbers: Range<usize>, windows: &[Window]) -> Result<(), Failure> {
        for (number, window) in numbers.clone().zip(windows.iter().cycle().skip(numbers.start)) {
            let id = number.to_string();
            let body = json!({"data": [window.load]}).to_string();
            self.edge.send_input(input, &[("$.mid", &id)], body.as_bytes())?;
        }
        Ok(())
    }

    /// The numbers of the messages that were answered on an output, as the answers came; waits for `count` answers.
    pub fn answered(&self, output: &str, count: usize) -> Result<Vec<usize>, Failure> {
        self.edge.wait_for_output(output, count)?.iter().map(number).collect()
    }

    /// Waits until all of `0..count` are answered on an output: each at least once, and in order but for repetitions.
    pub fn all_answered(&self, output: &str, count: usize) -> Result<Vec<usize>, Failure> {
        self.edge.wait_for_inputs()?;
        let answered = self.answered(output, count)?;
        let mut next = 0;
        for number in &answered {
            if *number > next {
                return Err(format!("{number} is answered before {next}: {answered:?}"));
            }
            next = next.max(number + 1);
        }
        if next == count { Ok(answered) } else { Err(format!("{next} of {count} are answered")) }
    }

    /// Calls a direct method.
    pub fn invoke(&self, method: &str, payload: Value) -> Result<(i64, Value), Failure> {
        self.edge.invoke(method, &payload, METHOD)
    }

    /// Has the agent send all rows; gives its ledger.
    pub fn flush(&self) -> Result<Value, Failure> {
        // One that was started again is ready before it is connected.
        self.edge.wait_for_connects(1)?;
        match self.invoke("flush", json!({}))? {
            (200, ledger) if ledger["held"] == 0 => Ok(ledger),
            other => Err(format!("not all rows left: {other:?}")),
        }
    }

    fn agent_mut(&mut self) -> Result<&mut Agent, Failure> {
        self.agent.as_mut().ok_or_else(|| "the agent does not run".to_owned())
    }
}

/// The number of the message that is answered.
fn number(output: &Output) -> Result<usize, Failure> {
    let id = output.property("$.cid");
    id.parse().map_err(|_| format!("an answer to {id:?}: {}", output.topic))
}
