//! The scripted edge device is as Microsoft's own SDK expects it, and sees what that SDK is known to send.

use std::time::Duration;

use e2e::edge::{DEVICE, Edge, End, MODULE, Times};
use e2e::process::{Failure, Process};
use e2e::python;
use serde_json::{Value, json};

/// How long a method may take.
const METHOD: Duration = Duration::from_secs(20);

#[test]
fn the_sdk_finds_all_that_a_module_needs() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/edge-peer")?;
    let edge = Edge::start(&directory, Times::default())?;
    edge.set_desired(&json!({"models": {"a": {"version": 1}}, "gone": true}));
    let mut module = start(edge.environment(), "edge-peer", &[])?;

    let outputs = edge.wait_for_output("detections", 1)?;
    assert_eq!(
        outputs[0].topic,
        "devices/edge-dev-01/modules/inferAgent/messages/events/%24.on=detections&%24.mid=id%201%2F%2B%26%3D&\
         %24.cid=corr%231&%24.ct=application%2Fjson&%24.ce=utf-8&a%26b%3Dc=50%25%2B%23%3F&empty=&\
         model=yolo%20v8%20%C3%A4%2F%E2%82%AC"
    );
    assert_eq!(outputs[0].json()?, json!({"boxes": []}));
    assert_eq!((outputs[0].property("model"), outputs[0].property("$.mid")), ("yolo v8 ä/€", "id 1/+&="));
    let plain = edge.wait_for_output("", 1)?;
    assert_eq!(plain[0].topic, format!("devices/{DEVICE}/modules/{MODULE}/messages/events/"));
    assert_eq!(plain[0].body, b"\x00\xff");

    let connected = edge.wait_for_connects(1)?;
    assert_eq!(connected.client_id, "edge-dev-01/inferAgent");
    let username = "contoso-test.azure-devices.net/edge-dev-01/inferAgent/?api-version=2019-10-01&\
                    DeviceClientType=azure-iot-device-iothub-py%2F2.14.0%28";
    assert!(connected.username.starts_with(username), "{}", connected.username);
    assert_eq!((connected.keep_alive, connected.session_present), (60, false));
    let signed = edge.signed();
    let (resource, end) = signed[0].split_once('\n').ok_or("one line was signed")?;
    assert_eq!(resource, "contoso-test.azure-devices.net%2Fdevices%2Fedge-dev-01%2Fmodules%2FinferAgent");
    assert!(connected.password.starts_with(&format!("SharedAccessSignature sr={resource}&sig=")));
    assert!(connected.password.ends_with(&format!("&se={end}")), "{}", connected.password);
    assert_eq!((edge.workload_calls("trust-bundle"), edge.workload_calls("sign")), (1, 1));

    let seen = edge.wait_for_reported(|reported| reported["seen"].is_object())?;
    assert_eq!(seen["seen"], json!({"models": {"a": {"version": 1}}, "gone": true, "version": 2}));
    edge.set_desired(&json!({"models": {"b": {"version": 2}}}));
    // Nulls delete, so that they can't be reported: what the module got is what is left of it.
    let patched = edge.wait_for_reported(|reported| reported["patch"]["version"] == 3)?;
    assert_eq!(patched["patch"], json!({"models": {"b": {"version": 2}}, "version": 3}));

    assert_eq!(edge.invoke("double", &json!(21), METHOD)?, (200, json!(42)));
    assert_eq!(edge.invoke("nothing", &Value::Null, METHOD)?, (200, Value::Null));
    assert_eq!(edge.invoke("other", &json!({}), METHOD)?, (404, json!({"unknown": "other"})));

    let properties =
        [("$.mid", "m/1"), ("$.cid", "c 2+&="), ("a&b=c", "50%+#?"), ("empty", ""), ("x", "ä/€")];
    for number in 0..3 {
        edge.send_input("frames", &properties, format!("body {number}").as_bytes())?;
    }
    edge.wait_for_inputs()?;
    let mut echoes = edge.wait_for_output("echo", 3)?;
    // The SDK hands messages to threads, which answer as they come to it.
    echoes.sort_by(|one, other| one.body.cmp(&other.body));
    for (number, echo) in echoes.iter().enumerate() {
        assert_eq!(echo.body, format!("body {number}").as_bytes());
        assert_eq!(echo.property("input"), "frames");
        for (key, value) in properties {
            assert_eq!(echo.property(key), value, "{key}");
        }
    }
    end_module(&edge, &mut module)?;
    assert_eq!(edge.connects().pop().and_then(|connect| connect.end), Some(End::Disconnected));
    assert_eq!(edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn the_sdk_comes_back_after_a_cut_and_before_its_token_ends() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/edge-peer-again")?;
    let edge = Edge::start_over_http(&directory, Times::default())?;
    // Renewed 120 s before the end.
    let mut module = start(edge.environment(), "edge-peer-again", &["126"])?;
    let connects = edge
        .wait_for_connections(|connects| connects.iter().filter(|connect| connect.code == 0).count() == 2)?;
    assert_eq!(connects[0].end, Some(End::Disconnected));
    assert!(connects[1].session_present && connects[0].password != connects[1].password);
    assert_eq!(edge.workload_calls("sign"), 2);

    edge.wait_for_connects(2)?;
    edge.patch_desired(&json!({"before": 1}));
    edge.wait_for_reported(|reported| reported["patch"]["before"] == 1)?;
    edge.disturb(|faults| faults.cut_before_puback = 1);
    edge.send_input("frames", &[], b"twice")?;
    let echoes = edge.wait_for_output("echo", 2)?;
    assert_eq!((echoes[0].duplicate, echoes[1].duplicate), (false, true));
    assert!(echoes.iter().all(|echo| echo.body == b"twice"));
    edge.wait_for_connects(3)?;
    // The SDK never forgets a read of the twin that got no answer, so that it has to have this one before the next cut.
    edge.patch_desired(&json!({"between": 1}));
    edge.wait_for_reported(|reported| reported["patch"]["between"] == 1)?;

    edge.stop();
    edge.patch_desired(&json!({"whileAway": 2}));
    edge.start_again()?;
    edge.wait_for_connects(4)?;
    // The SDK reads the twin again and passes on what it missed.
    edge.wait_for_reported(|reported| reported["patch"]["whileAway"] == 2)?;
    end_module(&edge, &mut module)?;
    assert_eq!(edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn the_sdk_connects_with_what_a_developer_sets() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/edge-peer-development")?;
    let edge = Edge::start(&directory, Times::default())?;
    let mut module = start(edge.development_environment(), "edge-peer-development", &[])?;
    end_module(&edge, &mut module)?;
    assert_eq!((edge.workload_calls("sign"), edge.violations()), (0, vec![]));
    Ok(())
}

fn start(
    environment: Vec<(&'static str, String)>,
    name: &str,
    arguments: &[&str],
) -> Result<Process, Failure> {
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let log = e2e::target_root().join("e2e").join(name).join("module.log");
    let mut module = python::start("iot_module.py", arguments, &environment, &log)?;
    module.wait_for_line("ready")?;
    Ok(module)
}

fn end_module(edge: &Edge, module: &mut Process) -> Result<(), Failure> {
    assert_eq!(edge.invoke("end", &Value::Null, METHOD)?.0, 200);
    match module.wait(METHOD) {
        Some(0) => Ok(()),
        code => Err(format!("the module ended with {code:?}: {}", module.log_tail())),
    }
}
