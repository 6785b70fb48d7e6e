//! `edgewise deploy`, `undeploy`, `device` and `command`.

use std::time::Duration;

use clap::{Args, Subcommand};
use cloud_sync::contract::{Collect, EngineInfo, Hardware, Ledger, ModelSettings};
use cloud_sync::name::{DeviceId, ModelName, ModelVersion};
use serde_json::{Map, Value};

use super::{CliError, Context, enroll, output, pair};
use crate::api::{
    CommandReply, CommandRequest, DeployRequest, Deployed, DeviceModel, DevicePage, DeviceRecord,
};

#[derive(Debug, Args)]
pub(super) struct Deploy {
    /// NAME:VERSION
    version: ModelVersion,
    /// The devices; one that was never seen gets it when it comes.
    #[arg(long = "device", required = true, num_args = 1.., value_name = "ID")]
    devices: Vec<DeviceId>,
    /// What runs it: auto, tract, cpu, cuda, tensorrt, …; the device's own setting where none is given.
    #[arg(long)]
    provider: Option<engine::Provider>,
    /// Threads within one score; 0 for as many as prove quickest there.
    #[arg(long)]
    threads: Option<u32>,
    /// Workers, each with the model loaded.
    #[arg(long)]
    instances: Option<u32>,
    /// Most rows of several requests that are scored as one; 0 for each request alone.
    #[arg(long, value_name = "ROWS")]
    max_batch: Option<u32>,
    /// Longest time that a request waits for others to be scored with, such as 500us.
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    max_delay: Option<Duration>,
    /// Rows at which no others are waited for.
    #[arg(long, value_delimiter = ',', value_name = "ROWS,…")]
    preferred_batch: Option<Vec<u32>>,
    /// Whether its rows are collected, or which share of them, 0 to 1; the device's own setting where none is given.
    #[arg(long, value_parser = collect, value_name = "on|off|RATE")]
    collect: Option<Collect>,
}

#[derive(Debug, Args)]
pub(super) struct Undeploy {
    /// The model.
    name: ModelName,
    /// The devices.
    #[arg(long = "device", required = true, num_args = 1.., value_name = "ID")]
    devices: Vec<DeviceId>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List devices.
    List,
    /// Show what a device shall run and what it runs.
    Show {
        /// The device.
        id: DeviceId,
    },
    /// Make a device's key, its certificate for the broker, and a configuration that uses them.
    Enroll(enroll::Device),
}

#[derive(Debug, Args)]
pub(super) struct Command {
    /// The device.
    id: DeviceId,
    /// What to do: ping, state, collect, rollback, log-level, flush, score.
    name: String,
    /// An argument; a value that is JSON is sent as such, any other as text.
    #[arg(long = "arg", value_parser = pair, value_name = "KEY=VALUE")]
    arguments: Vec<(String, String)>,
    /// How long to wait for the answer.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration, value_name = "TIME")]
    timeout: Duration,
}

pub(super) fn deploy(context: &Context, arguments: Deploy) -> Result<(), CliError> {
    let version = arguments.version;
    let request = DeployRequest {
        name: version.name.to_string(),
        version: version.version,
        devices: arguments.devices.iter().map(ToString::to_string).collect(),
        settings: ModelSettings {
            provider: arguments.provider.map(|provider| provider.to_string()),
            threads: arguments.threads,
            instances: arguments.instances,
            max_batch: arguments.max_batch,
            max_delay_us: arguments
                .max_delay
                .map(|delay| u64::try_from(delay.as_micros()).unwrap_or(u64::MAX)),
            preferred_batch: arguments.preferred_batch,
            collect: arguments.collect,
            ..ModelSettings::default()
        },
    };
    let deployed: Deployed = context.client.post("/api/deployments", &request, Duration::ZERO)?;
    print_deployed(context, &deployed, &format!("{version} deployed to"))
}

pub(super) fn undeploy(context: &Context, arguments: Undeploy) -> Result<(), CliError> {
    let devices: Vec<String> = arguments.devices.iter().map(ToString::to_string).collect();
    let path = format!("/api/deployments/{}", arguments.name);
    let answer = context.client.delete(&path, &[("devices", devices.join(","))])?;
    let deployed: Deployed = serde_json::from_slice(&answer)
        .map_err(|error| CliError::Failed(format!("the registry's answer can't be read: {error}")))?;
    print_deployed(context, &deployed, &format!("{} undeployed from", arguments.name))
}

pub(super) fn run(context: &Context, verb: Verb) -> Result<(), CliError> {
    match verb {
        Verb::List => list(context),
        Verb::Show { id } => show(context, &id),
        Verb::Enroll(arguments) => enroll::device(context, arguments),
    }
}

pub(super) fn command(context: &Context, arguments: Command) -> Result<(), CliError> {
    let json = |text: String| serde_json::from_str(&text).unwrap_or(Value::String(text));
    let request = CommandRequest {
        name: arguments.name,
        arguments: arguments
            .arguments
            .into_iter()
            .map(|(key, value)| (key, json(value)))
            .collect::<Map<_, _>>(),
        timeout_seconds: Some(arguments.timeout.as_secs().max(1)),
    };
    let path = format!("/api/devices/{}/commands", arguments.id);
    let reply: CommandReply = context.client.post(&path, &request, arguments.timeout)?;
    if context.json {
        output::json(&reply)?;
    } else {
        output::json(&reply.result)?;
    }
    let why = || match reply.result.get("error").and_then(Value::as_str) {
        Some(why) => format!("{} answered {}: {why}", arguments.id, reply.status),
        None => format!("{} answered {}", arguments.id, reply.status),
    };
    match reply.status {
        200..=299 => Ok(()),
        400 => Err(CliError::Usage(why())),
        404 => Err(CliError::NotFound(why())),
        409 => Err(CliError::Refused(why())),
        _ => Err(CliError::Failed(why())),
    }
}

fn collect(text: &str) -> Result<Collect, String> {
    match text {
        "on" => Ok(Collect { enabled: true, rate: 1.0 }),
        "off" => Ok(Collect { enabled: false, rate: 1.0 }),
        _ => match text.parse() {
            Ok(rate) if (0.0..=1.0).contains(&rate) => Ok(Collect { enabled: true, rate }),
            _ => Err(format!("{text:?} is not on, off or a share from 0 to 1")),
        },
    }
}

fn print_deployed(context: &Context, deployed: &Deployed, what: &str) -> Result<(), CliError> {
    if context.json {
        return output::json(deployed);
    }
    let mut lines =
        deployed.devices.iter().map(|to| format!("{what} {}, revision {}", to.device, to.revision));
    lines.try_for_each(|line| output::line(&line))
}

fn list(context: &Context) -> Result<(), CliError> {
    let mut devices: Vec<DeviceRecord> = Vec::new();
    loop {
        let mut query = vec![("limit", "1000".to_owned())];
        query.extend(devices.last().map(|last| ("after", last.id.clone())));
        let page: DevicePage = context.client.get("/api/devices", &query)?;
        devices.extend(page.devices);
        if page.next.is_none() {
            break;
        }
    }
    if context.json {
        return output::json(&devices);
    }
    let row = |device: DeviceRecord| {
        let models: Vec<String> = device.models.iter().map(brief).collect();
        let online = if device.online { "online" } else { "offline" };
        vec![device.id, online.to_owned(), output::optional(device.last_seen), models.join(", ")]
    };
    output::table(&["DEVICE", "STATE", "LAST SEEN", "MODELS"], devices.into_iter().map(row).collect())
}

fn show(context: &Context, id: &DeviceId) -> Result<(), CliError> {
    let device: DeviceRecord = context.client.get(&format!("/api/devices/{id}"), &[])?;
    if context.json {
        return output::json(&device);
    }
    let state = if device.online { device.state.as_deref().unwrap_or("online") } else { "offline" };
    let reported = output::optional(device.reported_revision);
    output::line(&format!("device    {}", device.id))?;
    output::line(&format!("state     {state}, last seen {}", output::optional(device.last_seen.as_ref())))?;
    output::line(&format!("agent     {}", output::optional(device.agent_version.as_ref())))?;
    output::line(&format!("revision  desired {}, reported {reported}", device.desired_revision))?;
    for line in device.hardware.iter().flat_map(hardware_lines) {
        output::line(&line)?;
    }
    if let Some(ledger) = &device.ledger {
        output::line(&format!("rows      {}", ledger_line(ledger)))?;
    }
    if device.rows_refused > 0 {
        output::line(&format!("refused   {} uploaded rows: they make no sense", device.rows_refused))?;
    }
    let row = |model: DeviceModel| {
        vec![
            model.name.clone(),
            output::optional(model.desired),
            phase(&model),
            output::optional(model.active),
            output::optional(model.previous),
            output::optional(model.engine),
            output::optional(model.provider),
            output::optional(model.memory_bytes.map(output::bytes)),
            model.why.unwrap_or_default(),
        ]
    };
    let heading = ["MODEL", "DESIRED", "PHASE", "ACTIVE", "PREVIOUS", "ENGINE", "PROVIDER", "MEMORY", "WHY"];
    output::table(&heading, device.models.into_iter().map(row).collect())
}

fn hardware_lines(hardware: &Hardware) -> Vec<String> {
    let limit = hardware.memory_limit_bytes.map(|limit| format!(" ({} for the agent)", output::bytes(limit)));
    let disk = hardware.disk_bytes.map(|size| format!(" of {}", output::bytes(size)));
    let kind = hardware.disk.as_ref().map(|kind| format!(", {kind}"));
    let swap = hardware.swap_bytes.filter(|swap| *swap > 0);
    let swap = swap.map(|swap| format!(", {} swap", output::bytes(swap)));
    let mut lines = vec![format!(
        "hardware  {} {}, {} cores, {} memory{}{}, {} disk free{}{}",
        hardware.architecture,
        hardware.operating_system,
        hardware.cores,
        output::bytes(hardware.memory_bytes),
        limit.unwrap_or_default(),
        swap.unwrap_or_default(),
        output::bytes(hardware.disk_free_bytes),
        disk.unwrap_or_default(),
        kind.unwrap_or_default(),
    )];
    let names = hardware.board.iter().chain((!hardware.processor.is_empty()).then_some(&hardware.processor));
    let names: Vec<&str> = names.chain(&hardware.gpus).map(String::as_str).collect();
    if !names.is_empty() {
        lines.push(format!("board     {}", names.join(", ")));
    }
    let mut health = Vec::new();
    if let Some(pressure) = &hardware.pressure {
        let why = pressure.why.as_ref().map(|why| format!(" ({why})"));
        health.push(format!("{}{}", pressure.level, why.unwrap_or_default()));
    }
    if let Some(celsius) = hardware.celsius {
        let critical = hardware.critical_celsius.map(|critical| format!(" of {critical} °C"));
        health.push(format!("{celsius} °C{}", critical.unwrap_or_default()));
    }
    health.extend(hardware.memory_available_bytes.map(|left| format!("{} memory left", output::bytes(left))));
    health.extend(hardware.throttled.iter().cloned());
    if hardware.clock_synchronised == Some(false) {
        health.push("clock not synchronised".to_owned());
    }
    if hardware.clock_plausible == Some(false) {
        health.push("clock is wrong".to_owned());
    }
    if hardware.clock_hardware == Some(false) {
        health.push("clock stands still without power".to_owned());
    }
    if hardware.frequency_capped == Some(true) {
        health.push("frequency capped".to_owned());
    }
    let system = hardware.system_disk_free_bytes;
    health.extend(system.map(|free| format!("{} system disk free", output::bytes(free))));
    if !health.is_empty() {
        lines.push(format!("health    {}", health.join(", ")));
    }
    if !hardware.engines.is_empty() {
        let engines: Vec<String> = hardware.engines.iter().map(engine_words).collect();
        lines.push(format!("engines   {}", engines.join(", ")));
    }
    lines.extend(hardware.certificate_until.map(|until| format!("identity  good until {}", date(until))));
    lines
}

/// The day, in UTC.
fn date(unix_seconds: u64) -> String {
    let at = i64::try_from(unix_seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    at.map_or("for ever".to_owned(), |at| at.strftime("%Y-%m-%d").to_string())
}

fn engine_words(engine: &EngineInfo) -> String {
    match (&engine.version, &engine.why_not) {
        (Some(version), _) => format!("{} {version}", engine.name),
        (None, why) => format!("no {} ({})", engine.name, why.as_deref().unwrap_or("unknown")),
    }
}

fn ledger_line(ledger: &Ledger) -> String {
    format!(
        "{} captured = {} uploaded + {} held + {} dropped + {} lost",
        ledger.captured,
        ledger.uploaded,
        ledger.held,
        ledger.dropped_total(),
        ledger.lost
    )
}

fn phase(model: &DeviceModel) -> String {
    let phase = model.phase.and_then(|phase| serde_json::to_value(phase).ok());
    phase.as_ref().and_then(Value::as_str).unwrap_or("-").to_owned()
}

fn brief(model: &DeviceModel) -> String {
    let version = model.desired.or(model.version);
    format!("{}:{} {}", model.name, output::optional(version), phase(model))
}

#[cfg(test)]
mod tests {
    use cloud_sync::contract::Pressure;

    use super::*;

    #[test]
    fn an_old_agent_has_one_line_and_a_strained_board_says_why() {
        assert_eq!(hardware_lines(&Hardware::default()).len(), 1);
        let pressure = Pressure { level: "strained".to_owned(), why: Some("cpu at 80 °C".to_owned()) };
        let hardware = Hardware {
            board: Some("Raspberry Pi 4".to_owned()),
            celsius: Some(80),
            throttled: vec!["under-voltage now".to_owned()],
            pressure: Some(pressure),
            ..Hardware::default()
        };
        let lines = hardware_lines(&hardware);
        assert_eq!(lines[1], "board     Raspberry Pi 4");
        assert_eq!(lines[2], "health    strained (cpu at 80 °C), 80 °C, under-voltage now");

        let engine = |name: &str, version: Option<&str>, why_not: Option<&str>| EngineInfo {
            name: name.to_owned(),
            version: version.map(str::to_owned),
            why_not: why_not.map(str::to_owned),
        };
        let hardware = Hardware {
            clock_plausible: Some(false),
            frequency_capped: Some(true),
            certificate_until: Some(1_900_000_000),
            engines: vec![engine("tract", Some("0.23.4"), None), engine("cpu", None, Some("no library"))],
            ..Hardware::default()
        };
        assert_eq!(
            hardware_lines(&hardware)[1..],
            [
                "health    clock is wrong, frequency capped",
                "engines   tract 0.23.4, no cpu (no library)",
                "identity  good until 2030-03-17",
            ]
        );
    }

    #[test]
    fn collecting_is_on_off_or_a_share() {
        assert_eq!(collect("on"), Ok(Collect { enabled: true, rate: 1.0 }));
        assert_eq!(collect("0.25"), Ok(Collect { enabled: true, rate: 0.25 }));
        assert!(!collect("off").unwrap().enabled);
        for bad in ["", "yes", "1.5", "-0.1", "NaN", "inf"] {
            assert!(collect(bad).is_err(), "{bad}");
        }
    }
}
