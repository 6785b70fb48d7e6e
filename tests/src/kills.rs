//! Loops of `kill -9` at random moments under load, and what must hold after each kill and at the end.
//!
//! Invariants that every loop holds the programs to:
//! - Killed and started again as a service manager would, they come back by themselves.
//! - A row that `/metrics` counted as captured stays counted, whoever dies.
//! - At the end the ledger adds up, nothing is lost, and the exported data have each uploaded row exactly once.
//! - A device goes on serving what it served, or the newer version that it had been proving; it is never without one.
//! - A version number that was ever seen is not given again, and each version that is listed is whole.
//!
//! Everything random follows from a seed; when each program gets its turn does not, so a seed makes a failure likely,
//! not sure.

mod versions;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use cloud_sync::bundle::Bundle;
use serde_json::Value;

use crate::client::Client;
use crate::data::{self, MODEL, Window};
use crate::flow::Background;
use crate::process::{Blow, Failure, wait_until};
use crate::random::Random;
use crate::site::{DEVICE, PATIENCE, Site, adds_up, dropped};
use versions::{Versions, each_version};

/// How long a program lives until it is killed, at most: through its start and into its work.
const LIFE: Duration = Duration::from_millis(1200);

/// How long a link may take to come back: twice its longest pause, and what connecting takes.
const LINK: Duration = Duration::from_secs(150);

/// Bytes of an asset that makes a pull last.
const HEAVY: usize = 6 << 20;

/// Bytes of an asset that makes a registration last.
const NOISE: usize = 1 << 20;

/// Versions that take turns: one more than the vault keeps, so that the next has to be pulled.
const TURNS: u64 = 4;

/// After what of a deployment the agent is killed.
const PHASES: [&str; 4] = ["fetching", "verifying", "proving", "active"];

/// A loop: its name, and what runs so many cycles of it with a seed.
pub type Loop = (&'static str, fn(u64, u64) -> Result<Report, Failure>);

/// All of them.
pub const LOOPS: [Loop; 4] =
    [("agent", agent), ("deploy", deploy), ("registry", registry), ("broker", broker)];

/// What a loop came to.
#[derive(Debug)]
pub struct Report {
    kills: u64,
    answers: u64,
    ledger: Value,
    versions: u64,
    longest_return: Duration,
    notes: BTreeMap<String, u64>,
    took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} kills in {:.0} s; {} answers, {} rows captured, each exported once or dropped ({}); {} versions; \
             longest return {} ms; {:?}",
            self.kills,
            self.took.as_secs_f64(),
            self.answers,
            self.ledger["captured"],
            dropped(&self.ledger),
            self.versions,
            self.longest_return.as_millis(),
            self.notes,
        )
    }
}

/// Kills the agent while it captures and uploads, and while it starts.
pub fn agent(cycles: u64, seed: u64) -> Result<Report, Failure> {
    let mut ground = Ground::start("agent", seed)?;
    ground.site.bring(1)?;
    for _ in 0..cycles {
        ground.live(LIFE);
        ground.kill_agent()?;
        ground.expect_version(&[1])?;
    }
    ground.finish()
}

/// Kills the agent in each phase of a deployment, while it captures and uploads.
pub fn deploy(cycles: u64, seed: u64) -> Result<Report, Failure> {
    let mut ground = Ground::start("deploy", seed)?;
    for turn in 1..=TURNS {
        let place = ground.site.directory.join(format!("bundle-{turn}"));
        ground.site.cloud.register(&data::noisy(1 + turn % 2, turn, HEAVY, &place)?)?;
    }
    ground.site.deploy(1)?;
    let mut serving = 1;
    for (_, aim) in (0..cycles).zip(PHASES.into_iter().cycle()) {
        let next = serving % TURNS + 1;
        ground.site.cloud.text(&["deploy", &format!("{MODEL}:{next}"), "--device", DEVICE])?;
        let before = ground.wait_for_phase(next, aim)?;
        ground.live(Duration::from_millis(60));
        ground.kill_agent()?;
        ground.note(format!("killed while or after {before}"));
        // What was active serves again; before that it may have come to serve in the last moment.
        let allowed = if before == "active" { vec![next] } else { vec![serving, next] };
        ground.expect_version(&allowed)?;
        ground.finish_deployment(next)?;
        ground.expect_version(&[next])?;
        serving = next;
    }
    ground.finish()
}

/// Kills the registry while it registers, deletes and takes rows in, and while it starts.
pub fn registry(cycles: u64, seed: u64) -> Result<Report, Failure> {
    let mut ground = Ground::start("registry", seed)?;
    ground.site.bring(1)?;
    let bundles: Result<Vec<_>, Failure> = (1..=TURNS)
        .map(|turn| {
            let place = ground.site.directory.join(format!("bundle-{turn}"));
            data::noisy(1 + turn % 2, turn, NOISE, &place)
        })
        .collect();
    let bundles = bundles?;
    let mut versions = Versions::default();
    versions.registered(1)?;
    for _ in 0..cycles {
        let delay = ground.random.time(LIFE);
        let blow = Blow::after(delay, &ground.site.cloud.process);
        match ground.random.below(4) {
            0 => blow.landed()?,
            1 if versions.deletable().is_some() => {
                let victim = versions.deletable().unwrap_or_default();
                let deleted = ground.site.cloud.text(&["model", "delete", &format!("{MODEL}:{victim}")]);
                blow.landed()?;
                versions.deleted(victim, deleted.is_ok());
            }
            _ => {
                let chosen = ground.random.below(TURNS) as usize;
                let bundle = bundles.get(chosen).ok_or("there is no such bundle")?;
                let registered = ground.site.cloud.register(bundle);
                blow.landed()?;
                if let Ok(version) = registered {
                    versions.registered(version)?;
                }
            }
        }
        ground.kills += 1;
        let begun = Instant::now();
        ground.site.restart_cloud()?;
        ground.returned(begun);
        let listed = ground.site.cloud.json(&["model", "list", "--name", MODEL])?;
        let newest = versions.compare(&listed)?;
        ground.check_whole(newest, &listed)?;
        ground.expect_version(&[1])?;
    }
    ground.versions = versions.highest;
    ground.finish()
}

/// Kills the broker while rows go up, every other time with the agent or the registry or both.
pub fn broker(cycles: u64, seed: u64) -> Result<Report, Failure> {
    let mut ground = Ground::start("broker", seed)?;
    ground.site.bring(1)?;
    for _ in 0..cycles {
        ground.live(LIFE);
        ground.site.broker.kill();
        ground.kills += 1;
        ground.live(LIFE / 4);
        let (with_agent, with_registry) = (ground.random.coin(), ground.random.coin());
        if with_agent {
            ground.kill_agent()?;
        }
        ground.site.broker.restart()?;
        if with_registry {
            ground.site.restart_cloud()?;
            ground.kills += 1;
        }
        let client = ground.site.client();
        wait_until(LINK, || match client.metric("edgewise_link_up")? {
            1 => Ok(()),
            _ => Err("the agent has no link".to_owned()),
        })?;
        ground.expect_version(&[1])?;
    }
    ground.finish()
}

/// A site under load, and what was seen of it.
struct Ground {
    site: Site,
    flow: Background,
    window: Window,
    random: Random,
    /// Rows that `/metrics` last said to be captured.
    acknowledged: u64,
    kills: u64,
    versions: u64,
    longest_return: Duration,
    notes: BTreeMap<String, u64>,
    begun: Instant,
}

impl Ground {
    fn start(name: &str, seed: u64) -> Result<Self, Failure> {
        println!("kills: {name}, seed {seed}");
        let site = Site::start(&format!("kills-{name}"))?;
        let windows = data::test_split()?;
        let window = windows.first().cloned().ok_or("the test split is empty")?;
        let flow = Background::start(&site.agent.http, &windows);
        Ok(Self {
            site,
            flow,
            window,
            random: Random::new(seed),
            acknowledged: 0,
            kills: 0,
            versions: 0,
            longest_return: Duration::ZERO,
            notes: BTreeMap::new(),
            begun: Instant::now(),
        })
    }

    /// Lets everything run for a random time.
    fn live(&mut self, longest: Duration) {
        std::thread::sleep(self.random.time(longest));
    }

    fn note(&mut self, what: String) {
        *self.notes.entry(what).or_default() += 1;
    }

    fn returned(&mut self, since: Instant) {
        self.longest_return = self.longest_return.max(since.elapsed());
    }

    /// Kills the agent, lets it come back, sometimes dying on the way, and compares what it had acknowledged.
    fn kill_agent(&mut self) -> Result<(), Failure> {
        self.acknowledge()?;
        self.site.agent.process.kill();
        self.kills += 1;
        let begun = Instant::now();
        self.site.restart_agent()?;
        self.returned(begun);
        self.flow.follow(&self.site.agent.http);
        self.acknowledge()
    }

    /// Rows that were captured stay so.
    fn acknowledge(&mut self) -> Result<(), Failure> {
        let captured = self.site.client().metric("edgewise_rows_captured_total")?;
        if captured < self.acknowledged {
            return Err(format!("{} rows had been captured, and now {captured}", self.acknowledged));
        }
        self.acknowledged = captured;
        Ok(())
    }

    /// Asks for a prediction, which one of `versions` must give.
    fn expect_version(&self, versions: &[u64]) -> Result<(), Failure> {
        let (version, _) = self.site.client().predict(&self.window)?;
        if versions.contains(&version) {
            Ok(())
        } else {
            Err(format!("version {version} answers, not one of {versions:?}"))
        }
    }

    /// Waits until a version is in a phase, or beyond it; gives the one that it is in.
    fn wait_for_phase(&self, version: u64, aim: &str) -> Result<&'static str, Failure> {
        let client = self.site.client();
        let order = |phase: &str| PHASES.iter().position(|known| *known == phase);
        let deadline = Instant::now() + PATIENCE;
        // Without pauses between: phases are short.
        while Instant::now() < deadline {
            if let Some(at) = order(&phase_of(&client, version)?)
                && order(aim).is_some_and(|aim| at >= aim)
            {
                return Ok(PHASES.get(at).copied().unwrap_or_default());
            }
        }
        Err(format!("version {version} does not come to {aim}"))
    }

    /// Waits until a version serves, deploying it again where the agent died of it, as it must believe.
    fn finish_deployment(&mut self, version: u64) -> Result<(), Failure> {
        let client = self.site.client();
        let end = || {
            wait_until(PATIENCE, || match phase_of(&client, version)?.as_str() {
                "active" => Ok(true),
                "rejected" => Ok(false),
                phase => Err(format!("version {version} is {phase}")),
            })
        };
        if end()? {
            return Ok(());
        }
        let known = wait_until(PATIENCE, || {
            let known = self.site.cloud.model_on(DEVICE, MODEL)?;
            let is_told = known["version"] == version && known["phase"] == "rejected";
            if is_told { Ok(known) } else { Err(format!("not told that {version} was rejected: {known}")) }
        })?;
        if known["why"] != "the agent died while it was being proven" {
            return Err(format!("rejected for another reason than a kill: {known}"));
        }
        *self.notes.entry("rejected, killed while proving".to_owned()).or_default() += 1;
        self.site.deploy(version).map(drop)
    }

    /// Pulls a version and compares its digest with the one that is listed.
    fn check_whole(&self, version: u64, listed: &Value) -> Result<(), Failure> {
        let place = self.site.directory.join(format!("pulled-{version}"));
        let path = place.display().to_string();
        self.site.cloud.text(&["model", "pull", &format!("{MODEL}:{version}"), "-o", &path])?;
        let digest = Bundle::open(&place).map_err(|error| format!("{path}: {error}"))?.digest().to_string();
        let whole = each_version(listed)
            .any(|record| record["version"] == version && record["digest"] == digest.as_str());
        std::fs::remove_dir_all(&place).map_err(|error| format!("removing {path}: {error}"))?;
        if whole {
            Ok(())
        } else {
            Err(format!("version {version} was pulled with digest {digest}: {listed}"))
        }
    }

    /// Ends the load, has everything uploaded, and compares the ledger with what was exported.
    fn finish(mut self) -> Result<Report, Failure> {
        let flowed = self.flow.stop()?;
        let ledger = wait_until(LINK, || self.site.flush())?;
        let exported = self.site.exported("rows")?;
        if let Some((id, times)) = exported.iter().find(|(_, times)| **times != 1) {
            return Err(format!("row {id} is exported {times} times"));
        }
        let captured = ledger["captured"].as_u64().unwrap_or(0);
        if !adds_up(&ledger) || ledger["lost"] != 0 || captured < self.acknowledged {
            return Err(format!("{} rows were acknowledged, and the ledger is {ledger}", self.acknowledged));
        }
        if ledger["uploaded"] != exported.len() as u64 {
            return Err(format!("{} rows are exported, and the ledger is {ledger}", exported.len()));
        }
        if captured == 0 || flowed.total() == 0 {
            return Err(format!("there was no load: {flowed:?}, {ledger}"));
        }
        for (reason, rows) in ledger["dropped"].as_object().into_iter().flatten() {
            self.notes.insert(format!("dropped as {reason}"), rows.as_u64().unwrap_or(0));
        }
        Ok(Report {
            kills: self.kills,
            answers: flowed.total(),
            ledger,
            versions: self.versions,
            longest_return: self.longest_return,
            notes: self.notes,
            took: self.begun.elapsed(),
        })
    }
}

/// The phase of a version on the device; empty where it is not the one that is wanted.
fn phase_of(client: &Client, version: u64) -> Result<String, Failure> {
    let text = client.get("/metrics")?.text;
    let label = format!("version=\"{version}\"");
    let line = text.lines().find(|line| line.starts_with("edgewise_model_phase{") && line.contains(&label));
    let phase = line.and_then(|line| line.split("phase=\"").nth(1)?.split('"').next());
    Ok(phase.unwrap_or_default().to_owned())
}
