use std::collections::BTreeMap;

use cloud_sync::contract::{AgentInfo, Phase, Pressure};
use proptest::prelude::*;

use super::*;

/// What edgeHub's validator says of a patch of the reported properties.
pub(in crate::module) fn check(patch: &Value) -> Result<(), String> {
    let bytes = patch.to_string().len();
    if !patch.is_object() {
        return Err("it is no object".to_owned());
    }
    if bytes > MAX_PATCH_BYTES {
        return Err(format!("it has {bytes} bytes"));
    }
    check_value(patch, 0, false)
}

fn check_value(value: &Value, depth: usize, in_array: bool) -> Result<(), String> {
    if depth > 10 {
        return Err("it is too deep".to_owned());
    }
    match value {
        Value::Null if in_array => Err("a null in an array".to_owned()),
        Value::Null | Value::Bool(_) => Ok(()),
        Value::Number(number) => match number.as_i64() {
            Some(number) if (-(1 << 52)..1 << 52).contains(&number) => Ok(()),
            None if number.is_f64() => Ok(()),
            _ => Err(format!("the number {number}")),
        },
        Value::String(text) if text.len() > 4096 => Err(format!("a text of {} bytes", text.len())),
        Value::String(_) => Ok(()),
        Value::Array(values) => values.iter().try_for_each(|value| check_value(value, depth + 1, true)),
        Value::Object(object) => object.iter().try_for_each(|(key, value)| {
            let forbidden = |c: char| c.is_control() || c.is_whitespace() || ".$#".contains(c);
            if key.is_empty() || key.len() > 1024 || key.contains(forbidden) {
                return Err(format!("the key {key:?}"));
            }
            check_value(value, depth + 1, false)
        }),
    }
}

fn state() -> Reported {
    let transfer = Transfer { fetched_bytes: 5, shared_bytes: 4, fetch_ms: 3, proof_ms: 2, swap_us: 1 };
    let model = ReportedModel {
        name: "power-demand".parse().unwrap(),
        version: 3,
        phase: Phase::RolledBack,
        why: Some("it crashed".to_owned()),
        active: Some(2),
        previous: None,
        engine: Some("tract".to_owned()),
        provider: Some("cpu".to_owned()),
        memory_bytes: Some(u64::MAX),
        transfer: Some(transfer),
    };
    let dropped = BTreeMap::from([("full".to_owned(), 7), ("too large.".to_owned(), 1)]);
    Reported {
        revision: 0,
        models: vec![model],
        agent: AgentInfo {
            version: "0.1.0".to_owned(),
            boot_id: "b".to_owned(),
            state: "running".to_owned(),
        },
        hardware: Hardware {
            cores: 4,
            memory_bytes: 1,
            throttled: vec!["under-voltage now".to_owned()],
            engines: vec![
                EngineInfo { name: "tract".into(), version: Some("1".into()), why_not: None },
                EngineInfo { name: "cpu".into(), version: None, why_not: Some("no library".into()) },
            ],
            pressure: Some(Pressure { level: "calm".to_owned(), why: None }),
            ..Hardware::default()
        },
        ledger: Ledger { captured: 9, uploaded: 1, dropped, ..Ledger::default() },
    }
}

fn facts<'a>(state: &'a Reported, mistakes: &'a [Mistake]) -> Facts<'a> {
    Facts { state, applied_version: Some(7), mistakes, registry_configured: true, registry_connected: false }
}

#[test]
fn the_state_reads_as_documented() {
    let mistake = Mistake { path: "models.x.version".to_owned(), error: "is missing".to_owned() };
    let document = document(&facts(&state(), &[mistake]));
    assert_eq!(document.keys().map(String::as_str).collect::<Vec<_>>(), KEYS);
    assert_eq!(
        Value::from(document),
        json!({
            "config": {"appliedVersion": 7, "status": "error",
                       "errors": [{"path": "models.x.version", "error": "is missing"}]},
            "models": {"power-demand": {
                "version": 3, "phase": "rolled-back", "why": "it crashed", "active": 2, "engine": "tract",
                "provider": "cpu", "memoryBytes": 4_503_599_627_370_495u64,
                "transfer": {"fetchedBytes": 5, "sharedBytes": 4, "fetchMs": 3, "proofMs": 2, "swapUs": 1}}},
            "agent": {"version": "0.1.0", "bootId": "b", "state": "running"},
            "hardware": {"architecture": "", "operatingSystem": "", "cores": 4, "processor": "",
                         "memoryBytes": 1, "diskFreeBytes": 0, "throttled": "under-voltage now",
                         "engines": "tract 1, no cpu: no library", "pressure": {"level": "calm"}},
            "ledger": {"captured": 9, "uploaded": 1, "held": 0, "lost": 0,
                       "dropped": {"full": 7, "too-large-": 1}},
            "registry": {"configured": true, "connected": false},
        })
    );
}

#[test]
fn what_does_not_fit_is_left_out_and_named() {
    let mut state = state();
    let model = ReportedModel { why: Some("\"".repeat(600)), ..state.models[0].clone() };
    let models = |count: usize, digits: usize| {
        (0..count)
            .map(|at| ReportedModel { name: format!("m{at:0digits$}").parse().unwrap(), ..model.clone() })
            .collect()
    };
    let mistakes: Vec<Mistake> =
        (0..40).map(|at| Mistake { path: format!("x{at}"), error: "unknown key".to_owned() }).collect();

    state.models = models(20, 0);
    let whole = document(&facts(&state, &mistakes));
    assert_eq!(whole["config"].get("leftOut"), None);
    assert_eq!(whole["models"]["m0"]["why"].as_str().map(str::len), Some(512));
    let errors = whole["config"]["errors"].as_array().unwrap();
    assert_eq!((errors.len(), &errors[16]["error"]), (17, &json!("and 24 more")));

    state.models = models(64, 0);
    let without_why = document(&facts(&state, &mistakes));
    assert_eq!(without_why["config"]["leftOut"], "why");
    assert_eq!(without_why["models"].as_object().unwrap().len(), 64);
    assert!(without_why["models"]["m0"].get("why").is_none());

    state.models = models(128, 60);
    let without_transfer = document(&facts(&state, &mistakes));
    assert_eq!(without_transfer["config"]["leftOut"], "why, transfer");
    check(&without_transfer.into()).unwrap();
}

fn reported() -> impl Strategy<Value = Reported> {
    let text = || prop_oneof![".{0,40}", "[\\x00-\\x20\"\\\\]{0,2000}", Just("ä\u{7f}€".repeat(900))];
    let number = || prop_oneof![any::<u64>(), 0u64..9];
    let maybe = || prop::option::of(prop_oneof![any::<u64>(), 0u64..9]);
    let model =
        ("[a-z0-9]{1,64}", number(), prop::option::of(text()), maybe(), prop::option::of(text()), maybe())
            .prop_map(|(name, version, why, active, engine, memory_bytes)| ReportedModel {
                name: name.parse().unwrap(),
                version,
                phase: Phase::Active,
                why,
                active,
                previous: active,
                provider: engine.clone(),
                engine,
                memory_bytes,
                transfer: memory_bytes.map(|fetched_bytes| Transfer { fetched_bytes, ..Transfer::default() }),
            });
    let ledger = (number(), prop::collection::btree_map(text(), number(), 0..40))
        .prop_map(|(captured, dropped)| Ledger { captured, dropped, ..Ledger::default() });
    (prop::collection::vec(model, 0..130), text(), text(), ledger).prop_map(
        |(models, agent, hardware, ledger)| Reported {
            revision: 1,
            models,
            agent: AgentInfo { version: agent.clone(), boot_id: agent.clone(), state: agent },
            hardware: Hardware {
                architecture: hardware.clone(),
                operating_system: hardware.clone(),
                throttled: vec![hardware.clone(); 3],
                board: Some(hardware.clone()),
                processor: hardware,
                ..Hardware::default()
            },
            ledger,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_the_state_edge_hub_takes_it(
        state in reported(),
        errors in prop::collection::vec((".{0,300}", "[\\x00-\\x7f]{0,2000}"), 0..40),
    ) {
        let mistakes: Vec<Mistake> =
            errors.into_iter().map(|(path, error)| Mistake { path, error }).collect();
        let document = document(&facts(&state, &mistakes));
        prop_assert_eq!(check(&document.into()), Ok(()));
    }
}
