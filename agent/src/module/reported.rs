//! The twin's reported properties, from the state that every cloud is told.
//!
//! Invariant: whatever the state holds, what comes out is taken by edgeHub and IoT Hub: names without `.`, `$`, `#`,
//! blanks and control characters; texts, numbers and the whole within their limits; no null. What must be left out for
//! that is named under `config.leftOut`.

use std::collections::BTreeMap;

use cloud_sync::contract::{EngineInfo, Hardware, Ledger, Reported, ReportedModel, Transfer};
use serde_json::{Value, json};

use super::MAX_INTEGER;
use super::desired::Mistake;
use super::merge::Object;

/// The top-level keys of what is reported; others are somebody else's.
pub const KEYS: [&str; 6] = ["config", "models", "agent", "hardware", "ledger", "registry"];

/// Largest patch that edgeHub takes, as JSON, and so the largest whole.
pub const MAX_PATCH_BYTES: usize = 32 * 1024;

/// Most mistakes that are listed: the first ones are corrected first.
pub(super) const MAX_MISTAKES: usize = 16;

/// Longest `why`, and longest text of a mistake: 16 of these with their paths leave half of the whole free.
const MAX_WHY_BYTES: usize = 512;
/// See [`MAX_WHY_BYTES`].
const MAX_PATH_BYTES: usize = 192;

/// Longest name that a machine or a program gives itself.
const MAX_NAME_BYTES: usize = 128;

/// Most reasons for dropped rows that are told apart; the agent knows fewer. What is beyond them is added up.
const MAX_REASONS: usize = 16;

/// All that is reported.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// What every cloud is told.
    pub state: &'a Reported,
    /// The version of the desired properties that is applied; `None` before the first.
    pub applied_version: Option<u64>,
    /// What is wrong in it.
    pub mistakes: &'a [Mistake],
    /// Whether there is a link to a registry.
    pub registry_configured: bool,
    /// Whether that link is up.
    pub registry_connected: bool,
}

/// The reported properties.
pub fn document(facts: &Facts<'_>) -> Object {
    let all = facts.state.models.len();
    let mut shown = Shown { why: true, transfer: true, errors: MAX_MISTAKES, models: all };
    loop {
        let document = render(facts, shown);
        let fits = serde_json::to_vec(&document).is_ok_and(|json| json.len() <= MAX_PATCH_BYTES);
        if fits || shown.models == 0 {
            return document;
        }
        shown = match shown {
            Shown { why: true, .. } => Shown { why: false, ..shown },
            Shown { transfer: true, .. } => Shown { transfer: false, ..shown },
            Shown { errors: 1.., .. } => Shown { errors: 0, ..shown },
            Shown { models, .. } => Shown { models: models / 2, ..shown },
        };
    }
}

/// How much is shown.
#[derive(Debug, Clone, Copy)]
struct Shown {
    why: bool,
    transfer: bool,
    errors: usize,
    models: usize,
}

fn render(facts: &Facts<'_>, shown: Shown) -> Object {
    let Reported { revision: _, models, agent, hardware, ledger } = facts.state;
    let models: Object = models
        .iter()
        .take(shown.models)
        .map(|model| (model.name.to_string(), self::model(model, shown).into()))
        .collect();
    let document = [
        ("config", config(facts, shown)),
        ("models", models),
        (
            "agent",
            object([
                ("version", name(&agent.version)),
                ("bootId", name(&agent.boot_id)),
                ("state", name(&agent.state)),
            ]),
        ),
        ("hardware", self::hardware(hardware)),
        ("ledger", self::ledger(ledger)),
        (
            "registry",
            object([
                ("configured", facts.registry_configured.into()),
                ("connected", facts.registry_connected.into()),
            ]),
        ),
    ];
    object(document.map(|(key, section)| (key, section.into())))
}

fn config(facts: &Facts<'_>, shown: Shown) -> Object {
    let Facts { state, applied_version, mistakes, .. } = facts;
    let listed = mistakes.iter().take(shown.errors);
    let mut errors: Vec<Value> = listed
        .map(|mistake| {
            let (path, error) = (text(&mistake.path, MAX_PATH_BYTES), text(&mistake.error, MAX_WHY_BYTES));
            json!({"path": path, "error": error})
        })
        .collect();
    if mistakes.len() > errors.len() {
        let more = format!("and {} more", mistakes.len() - errors.len());
        errors.push(json!({"path": "", "error": more}));
    }
    let mut config = Object::new();
    if let Some(version) = applied_version {
        config.insert("appliedVersion".to_owned(), number(*version));
    }
    config.insert("status".to_owned(), if mistakes.is_empty() { "ok" } else { "error" }.into());
    config.insert("errors".to_owned(), errors.into());
    let left_out = [
        (!shown.why).then(|| "why".to_owned()),
        (!shown.transfer).then(|| "transfer".to_owned()),
        (shown.models < state.models.len()).then(|| format!("{} models", state.models.len() - shown.models)),
    ];
    let left_out: Vec<String> = left_out.into_iter().flatten().collect();
    if !left_out.is_empty() {
        config.insert("leftOut".to_owned(), left_out.join(", ").into());
    }
    config
}

fn model(model: &ReportedModel, shown: Shown) -> Object {
    let transfer = |transfer: Transfer| {
        let Transfer { fetched_bytes, shared_bytes, fetch_ms, proof_ms, swap_us } = transfer;
        let transfer = object([
            ("fetchedBytes", number(fetched_bytes)),
            ("sharedBytes", number(shared_bytes)),
            ("fetchMs", number(fetch_ms)),
            ("proofMs", number(proof_ms)),
            ("swapUs", number(swap_us)),
        ]);
        Value::from(transfer)
    };
    let why = model.why.as_deref().filter(|_| shown.why);
    present([
        ("version", Some(number(model.version))),
        ("phase", Some(json!(model.phase))),
        ("why", why.map(|why| text(why, MAX_WHY_BYTES).into())),
        ("active", model.active.map(number)),
        ("previous", model.previous.map(number)),
        ("engine", model.engine.as_deref().map(name)),
        ("provider", model.provider.as_deref().map(name)),
        ("memoryBytes", model.memory_bytes.map(number)),
        ("transfer", model.transfer.filter(|_| shown.transfer).map(transfer)),
    ])
}

/// Without what changes at every look, temperature and free memory: each would be a patch, which IoT Hub counts.
fn hardware(hardware: &Hardware) -> Object {
    let optional = |text: &Option<String>| text.as_deref().map(name);
    let list = |texts: &[String]| (!texts.is_empty()).then(|| text(&texts.join(", "), MAX_WHY_BYTES).into());
    let engines: Vec<String> = hardware.engines.iter().map(engine).collect();
    let pressure = hardware.pressure.as_ref().map(|pressure| {
        let why = pressure.why.as_deref().map(|why| text(why, MAX_WHY_BYTES).into());
        present([("level", Some(name(&pressure.level))), ("why", why)]).into()
    });
    present([
        ("architecture", Some(name(&hardware.architecture))),
        ("operatingSystem", Some(name(&hardware.operating_system))),
        ("cores", Some(hardware.cores.into())),
        ("processor", Some(name(&hardware.processor))),
        ("memoryBytes", Some(number(hardware.memory_bytes))),
        ("diskFreeBytes", Some(number(hardware.disk_free_bytes))),
        ("board", optional(&hardware.board)),
        ("memoryLimitBytes", hardware.memory_limit_bytes.map(number)),
        ("diskBytes", hardware.disk_bytes.map(number)),
        ("disk", optional(&hardware.disk)),
        ("throttled", list(&hardware.throttled)),
        ("clockSynchronised", hardware.clock_synchronised.map(Value::from)),
        ("gpus", list(&hardware.gpus)),
        ("cLibrary", optional(&hardware.c_library)),
        ("swapBytes", hardware.swap_bytes.map(number)),
        ("clockPlausible", hardware.clock_plausible.map(Value::from)),
        ("clockHardware", hardware.clock_hardware.map(Value::from)),
        ("frequencyCapped", hardware.frequency_capped.map(Value::from)),
        ("engines", list(&engines)),
        ("pressure", pressure),
    ])
}

/// As `tract 0.23.4`, or `no cpu: …`.
fn engine(engine: &EngineInfo) -> String {
    match (&engine.version, &engine.why_not) {
        (Some(version), _) => format!("{} {version}", engine.name),
        (None, why) => format!("no {}: {}", engine.name, why.as_deref().unwrap_or("unknown")),
    }
}

fn ledger(ledger: &Ledger) -> Object {
    let mut dropped: BTreeMap<String, u64> = BTreeMap::new();
    for (reason, rows) in &ledger.dropped {
        let reason = if dropped.len() < MAX_REASONS { key(reason) } else { "other".to_owned() };
        let sum = dropped.entry(reason).or_default();
        *sum = sum.saturating_add(*rows);
    }
    let dropped: Object = dropped.into_iter().map(|(reason, rows)| (reason, number(rows))).collect();
    object([
        ("captured", number(ledger.captured)),
        ("uploaded", number(ledger.uploaded)),
        ("held", number(ledger.held)),
        ("lost", number(ledger.lost)),
        ("dropped", dropped.into()),
    ])
}

fn object<const N: usize>(entries: [(&str, Value); N]) -> Object {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Those that have a value.
fn present<const N: usize>(entries: [(&str, Option<Value>); N]) -> Object {
    entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

fn number(number: u64) -> Value {
    number.min(MAX_INTEGER).into()
}

fn name(given: &str) -> Value {
    text(given, MAX_NAME_BYTES).into()
}

/// `given`, cut to `limit` bytes at a character's border. Control characters become blanks: JSON would make six bytes
/// of each.
fn text(given: &str, limit: usize) -> String {
    let mut text = String::new();
    for character in given.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if text.len() + character.len_utf8() > limit {
            break;
        }
        text.push(character);
    }
    text
}

/// `given` as a key.
fn key(given: &str) -> String {
    let forbidden = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '.' | '$' | '#');
    let key = text(given, MAX_NAME_BYTES).replace(forbidden, "-");
    if key.is_empty() { "-".to_owned() } else { key }
}

#[cfg(test)]
pub(super) mod tests;
