//! The machine as the cloud is told of it: cut down to what goes with every report.

use cloud_sync::contract::{EngineInfo, Hardware};
use engine::{Availability, Provider};

use super::Board;

/// Most graphics processors that are named.
const MAX_GPUS: usize = 2;

/// Longest name that a part of the machine has, in bytes.
const MAX_NAME: usize = 56;

impl Board {
    /// What goes up, without what is not of the board: pressure, certificate and engines.
    pub fn hardware(&self) -> Hardware {
        let text = |text: &Option<String>| text.as_ref().map(|text| short(text));
        let hottest = self.hottest();
        let whole = |degrees: f64| degrees.round() as i32;
        let disk = self.disk.as_ref();
        let mounted = disk.map(|disk| &disk.mounted);
        let other = self.system_disk.as_ref().filter(|system| Some(&system.mounted) != mounted);
        let now = self.throttling.now.iter().map(|cause| format!("{cause} now"));
        let past = self.throttling.past().map(|(cause, when)| format!("{cause} {when}"));
        Hardware {
            architecture: self.architecture.to_owned(),
            operating_system: text(&self.operating_system).unwrap_or_default(),
            cores: self.cores.usable().unwrap_or(0),
            processor: text(&self.processor).unwrap_or_default(),
            memory_bytes: self.memory.total.unwrap_or(0),
            disk_free_bytes: disk.and_then(|disk| disk.free).unwrap_or(0),
            board: text(&self.model),
            memory_limit_bytes: self.memory.limit,
            memory_available_bytes: self.memory.available,
            disk_bytes: disk.and_then(|disk| disk.size),
            disk: disk.map(|disk| short(&disk.words())),
            celsius: hottest.map(|sensor| whole(sensor.celsius)),
            critical_celsius: hottest.and_then(|sensor| sensor.critical).map(whole),
            throttled: now.chain(past).collect(),
            clock_synchronised: self.clock.synchronised,
            gpus: self.gpus.iter().take(MAX_GPUS).map(|gpu| short(gpu)).collect(),
            c_library: self.c_library.clone(),
            swap_bytes: self.memory.swap,
            system_disk_free_bytes: other.and_then(|system| system.free),
            clock_plausible: Some(self.clock.plausible),
            clock_hardware: Some(self.clock.hardware),
            frequency_capped: self.throttling.capped.then_some(true),
            certificate_until: None,
            engines: Vec::new(),
            pressure: None,
        }
    }
}

/// The engines as the cloud is told of them: those that are there, and of the others the two that every device may have.
pub fn engines(found: Vec<Availability>) -> Vec<EngineInfo> {
    let told = found.into_iter().filter(|engine| {
        engine.version.is_ok() || matches!(engine.provider, Provider::Tract | Provider::Cpu)
    });
    let info = |engine: Availability| {
        let name = engine.provider.name().to_owned();
        let (version, why_not) = match engine.version {
            Ok(version) => (Some(short(&version)), None),
            Err(why) => (None, Some(short(&why))),
        };
        EngineInfo { name, version, why_not }
    };
    told.map(info).collect()
}

/// Names come from firmware, which may say anything.
fn short(name: &str) -> String {
    let mut kept = String::new();
    for character in name.chars().filter(|c| !c.is_control()) {
        if kept.len() + character.len_utf8() > MAX_NAME {
            break;
        }
        kept.push(character);
    }
    kept
}
