//! Direct methods: every command with each status that it has, whatever its payload.

use std::time::{Duration, Instant};

use e2e::data::{self, MODEL};
use e2e::module::{METHOD, Module};
use e2e::process::Failure;
use serde_json::{Value, json};

#[test]
fn every_method_says_how_it_went() -> Result<(), Failure> {
    let module = Module::start("methods")?;
    let windows = data::test_split()?;
    let window = &windows[0];
    let version = module.edge.patch_desired(&json!({"models": {MODEL: module.bundle(2)?}}));
    module.wait_for_applied(version)?;
    module.wait_for_active(2)?;

    for payload in [&b""[..], b"null", b"{}"] {
        let (status, answer) = module.edge.invoke_with("ping", payload, METHOD)?;
        assert_eq!((status, &answer["pong"]), (200, &true.into()), "{payload:?}");
    }
    let (_, state) = module.invoke("state", Value::Null)?;
    assert_eq!((&state["models"][0]["active"], &state["models"][0]["previous"]), (&2.into(), &1.into()));
    let (status, scored) = module.invoke("score", json!({"model": MODEL, "data": [window.load]}))?;
    assert_eq!(status, 200, "{scored}");
    assert_eq!((2, scored["outputs"]["label"][0].as_i64()), {
        let (version, label) = module.client()?.predict(window)?;
        (version, Some(label))
    });

    assert!(!module.log().contains("DEBUG"));
    assert_eq!(module.invoke("log-level", json!({"level": "debug"}))?, (200, json!({"level": "debug"})));
    module.wait_for_log("DEBUG", 1)?;
    assert_eq!(module.invoke("log-level", json!({"level": "info"}))?.0, 200);

    let captured = module.flush()?["captured"].as_u64().unwrap_or(0);
    assert_eq!(module.invoke("collect", json!({"enabled": "off"}))?.0, 200);
    module.client()?.predict(window)?;
    assert_eq!(module.flush()?["captured"], captured);
    assert_eq!(
        module.invoke("collect", json!({"enabled": true}))?,
        (200, json!({"enabled": true, "rate": 1.0}))
    );
    module.client()?.predict(window)?;
    assert_eq!(module.flush()?["captured"], captured + 1);

    for (method, payload, status, says) in [
        ("dance", &b"{}"[..], 404, "ping"),
        ("ping", b"[1]", 400, "object"),
        ("ping", b"{", 400, "JSON"),
        ("ping", b"7", 400, "object"),
        ("ping", br#"{"timeoutSeconds": 301}"#, 400, "timeoutSeconds"),
        ("collect", br#"{"rate": 2}"#, 400, "rate"),
        ("log-level", br#"{"level": "loud"}"#, 400, "loud"),
        ("log-level", b"{}", 400, "level"),
        ("score", br#"{"model": "power-demand", "data": "x"}"#, 400, "load"),
        ("score", br#"{"data": [[1]]}"#, 400, "model"),
        ("score", br#"{"model": "nothing", "data": [[1]]}"#, 404, "nothing"),
        ("rollback", br#"{"model": "nothing"}"#, 409, "nothing"),
        ("rollback", br#"{"model": 3}"#, 400, "model"),
    ] {
        let (given, answer) = module.edge.invoke_with(method, payload, METHOD)?;
        let text = answer["error"].as_str().unwrap_or_default();
        assert!(given == status && text.contains(says), "{method}: {given} {answer}");
    }
    assert_eq!(module.invoke("rollback", json!({"model": MODEL}))?, (200, json!({"version": 1})));
    module.wait_for_serving(1, window)?;
    assert_eq!(module.edge.late_answers(), []);
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_method_is_answered_in_its_callers_time_also_by_a_busy_agent() -> Result<(), Failure> {
    let module = Module::start("methods-busy")?;
    let windows = data::test_split()?;
    // Rows that can't leave: a flush has to wait for as long as its caller does.
    module.edge.stop();
    module.client()?.predict(&windows[0])?;
    module.wait_for_metric("edgewise_rows_held", |held| held == 1)?;
    module.edge.disturb(|faults| faults.hold_pubacks = true);
    module.edge.start_again()?;
    module.edge.wait_for_connects(2)?;
    let called = Instant::now();
    let (status, ledger) =
        module.edge.invoke("flush", &json!({"timeoutSeconds": 3}), Duration::from_secs(3))?;
    assert!(status == 500 && called.elapsed() < Duration::from_secs(3), "{status} {ledger}");
    assert_eq!(ledger["held"], 1, "{ledger}");

    // More calls than can run or wait, each of which takes its whole time: some are refused at once, and none is late.
    let call = || module.edge.invoke("flush", &json!({"timeoutSeconds": 4}), Duration::from_secs(4));
    let statuses: Vec<Result<i64, Failure>> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..50).map(|_| scope.spawn(|| call().map(|(status, _)| status))).collect();
        let joined = calls.into_iter().map(|call| call.join().unwrap_or_else(|_| Err("a panic".to_owned())));
        joined.collect()
    });
    let statuses = statuses.into_iter().collect::<Result<Vec<_>, _>>()?;
    let of = |status: i64| statuses.iter().filter(|given| **given == status).count();
    assert!(of(500) >= 8 && of(409) >= 10 && of(500) + of(409) == statuses.len(), "{statuses:?}");
    assert_eq!(module.client()?.metric("edgewise_module_methods_refused_total")?, 10);

    // Messages wait and others are being scored, and a method is answered all the same.
    module.send("amlInput", 0..200, &windows)?;
    for _ in 0..5 {
        assert_eq!(module.invoke("ping", Value::Null)?.0, 200);
    }
    module.edge.disturb(|faults| faults.hold_pubacks = false);
    for _ in 0..5 {
        assert_eq!(module.invoke("ping", Value::Null)?.0, 200);
    }
    module.all_answered("amlOutput", 200)?;
    assert_eq!(module.edge.late_answers(), []);
    assert_eq!(module.edge.violations(), Vec::<String>::new());
    Ok(())
}
