//! The scripted edge device finds what is wrong with a module: a journey that ends without a broken rule says something.

#[path = "edge_rules/rogue.rs"]
mod rogue;

use std::time::Duration;

use e2e::edge::{Edge, End, Times};
use e2e::process::Failure;
use rogue::{Login, RESOURCE, Rogue, escape, now, packet, sign, with_length, workload};
use serde_json::json;

const EVENTS: &str = "devices/edge-dev-01/modules/inferAgent/messages/events/";
const INPUTS: &str = "devices/edge-dev-01/modules/inferAgent/inputs/#";
const METHODS: &str = "$iothub/methods/POST/#";
const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/#";
const TWIN_ANSWERS: &str = "$iothub/twin/res/#";
const REPORTED: &str = "$iothub/twin/PATCH/properties/reported/?$rid=1";

/// How long a method may take.
const METHOD: Duration = Duration::from_secs(20);

fn edge(name: &str, times: Times) -> Result<Edge, Failure> {
    Edge::start_over_http(&e2e::fresh_directory(&format!("e2e/edge-rules-{name}"))?, times)
}

#[test]
fn the_workload_api_serves_only_those_who_ask_rightly() -> Result<(), Failure> {
    let edge = edge("workload", Times::default())?;
    let sign = "/modules/inferAgent/genid/638412345678901234/sign";
    let version = "?api-version=2022-08-03";
    let (ok, json) = (r#"{"keyId":"primary","algo":"HMACSHA256","data":"eA=="}"#, "application/json");
    let cases = [
        ("GET", "/trust-bundle".to_owned(), json, "", 400, "api-version not specified"),
        ("GET", "/trust-bundle?api-version=2022".to_owned(), json, "", 400, "invalid api-version \"2022\""),
        ("GET", format!("/trust-bundles{version}"), json, "", 404, "not found"),
        ("GET", format!("{sign}{version}"), json, "", 400, "wrong method"),
        ("POST", format!("{sign}{version}"), json, "", 400, "missing body"),
        ("POST", format!("{sign}{version}"), "text/plain", ok, 400, "missing body"),
        ("POST", format!("{sign}{version}"), json, "{", 422, "EOF"),
        ("POST", format!("{sign}{version}"), json, "{}", 422, "missing field"),
        ("POST", format!("{sign}{version}"), json, r#"{"data":"eA"}"#, 400, "padding"),
        ("POST", format!("/modules/inferAgent/genid/1/sign{version}"), json, ok, 403, "forbidden"),
        (
            "POST",
            format!("/modules/other/genid/638412345678901234/sign{version}"),
            json,
            ok,
            403,
            "forbidden",
        ),
    ];
    for (method, path, kind, body, status, message) in cases {
        let (given, answer) = workload(&edge, method, &path, kind, body)?;
        assert_eq!(given, status, "{method} {path} {body}: {answer}");
        let text = answer["message"].as_str().unwrap_or_default();
        assert!(text.to_lowercase().contains(&message.to_lowercase()), "{answer}");
        edge.wait_for_violation(text)?;
    }
    let get = || workload(&edge, "GET", &format!("/trust-bundle{version}"), json, "");
    let bundle = get()?.1["certificate"].as_str().unwrap_or_default().to_owned();
    assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 2);
    edge.disturb(|faults| faults.workload_status = Some(500));
    assert_eq!(get()?.0, 500);
    edge.disturb(|faults| faults.workload_status = None);
    edge.stop_workload();
    assert!(get().is_err());
    edge.start_workload()?;
    assert_eq!(get()?.0, 200);
    assert_eq!(edge.workload_calls("trust-bundle"), 5);
    assert_eq!(edge.violations(), Vec::<String>::new());
    Ok(())
}

#[test]
fn who_is_not_who_they_should_be_is_not_let_in() -> Result<(), Failure> {
    let edge = edge("connect", Times { clock_skew: Duration::from_secs(5), ..Times::default() })?;
    let token = |resource: &str, end: i64| -> Result<String, Failure> {
        let signature = escape(&sign(&edge, &format!("{resource}\n{end}"))?);
        Ok(format!("SharedAccessSignature sr={resource}&sig={signature}&se={end}"))
    };
    // One whose signature has a + in it, which is a blank if it is not escaped.
    let mut plus = (now() + 1000..).map(|end| Ok((sign(&edge, &format!("{RESOURCE}\n{end}"))?, end)));
    let plus = plus.find(|signed: &Result<(String, i64), Failure>| match signed {
        Ok((signature, _)) => signature.contains('+'),
        Err(_) => true,
    });
    let (signature, end) = plus.ok_or("no signature")??;
    let unescaped = format!("SharedAccessSignature sr={RESOURCE}&sig={signature}&se={end}");
    let other = RESOURCE.replace("contoso-test", "other");
    let passwords = [
        (unescaped, "sig"),
        (token(RESOURCE, now() - 6)?, "over"),
        (token(&other, now() + 60)?, "audience"),
        (token(RESOURCE, now() + 60)?.replace("se=", "skn=&se="), "skn"),
        (token(RESOURCE, now() + 60)?.replace("&se=", "&se=1"), "signature"),
        ("SharedAccessKey".to_owned(), "no shared access signature"),
    ];
    let _ = edge.wait_for_violation("other.azure")?;
    let right = Login::new(&edge, 3600)?;
    let mut cases: Vec<(Login, u8, &str)> = vec![];
    for (password, why) in passwords {
        cases.push((Login { password, ..Login::new(&edge, 3600)? }, 5, why));
    }
    let encoded = "edge-dev-01%2FinferAgent".to_owned();
    cases.push((Login { client_id: encoded, ..Login::new(&edge, 3600)? }, 5, "calls itself"));
    let device = right.username.replace("edge-dev-01", "edge-dev-02");
    cases.push((Login { username: device, ..Login::new(&edge, 3600)? }, 5, "calls itself"));
    let slash = right.username.replace("%2F", "/");
    cases.push((Login { username: slash, ..Login::new(&edge, 3600)? }, 3, "segments"));
    let unversioned = right.username.replace("api-version=2021-04-12", "api-version=");
    cases.push((Login { username: unversioned, ..Login::new(&edge, 3600)? }, 3, "no api-version"));
    cases.push((Login { level: 3, ..Login::new(&edge, 3600)? }, 1, "level 3"));
    for (login, expected, why) in cases {
        let (mut rogue, _, code) = Rogue::login(&edge, &login)?;
        assert_eq!(code, expected, "{why}");
        rogue.is_closed()?;
        edge.wait_for_violation(why)?;
    }
    let (_, _, code) = Rogue::login(&edge, &Login { flags: 0xC2, ..right })?;
    assert_eq!(code, 0);
    edge.wait_for_violation("clean session")?;

    edge.disturb(|faults| faults.connack = Some(5));
    let (mut rogue, _, code) = Rogue::login(&edge, &Login::new(&edge, 3600)?)?;
    rogue.is_closed()?;
    assert_eq!((code, edge.violations()), (5, vec![]));
    Ok(())
}

#[test]
fn a_module_has_one_connection_for_as_long_as_its_token_is_good() -> Result<(), Failure> {
    let short = Duration::from_millis(200);
    let times = Times {
        clock_skew: Duration::from_secs(1),
        reauthentication: short,
        connect: short,
        ..Times::default()
    };
    let edge = edge("token", times)?;
    let mut older = Rogue::connect(&edge, &[METHODS])?;
    let (mut newer, session_present, code) = Rogue::login(&edge, &Login::new(&edge, 2)?)?;
    assert_eq!((session_present, code), (true, 0));
    older.is_closed()?;
    assert_eq!(edge.violations(), Vec::<String>::new());
    newer.is_closed()?;
    edge.wait_for_violation("the token of the connection is over")?;
    assert!(matches!(edge.connects().pop().and_then(|connect| connect.end), Some(End::Closed(_))));

    Rogue::dial(&edge)?.is_closed()?;
    edge.wait_for_violation("no CONNECT")?;
    edge.forget_sessions();
    let (_, session_present, _) = Rogue::login(&edge, &Login::new(&edge, 60)?)?;
    assert!(!session_present);
    Ok(())
}

#[test]
fn what_edgehub_does_not_bear_ends_the_connection() -> Result<(), Failure> {
    let edge = edge("closed", Times::default())?;
    let publish = |first: u8, topic: &str| packet(first, &[&with_length(topic), &[0, 1], b"{}"]);
    let cases = [
        (publish(0x34, EVENTS), "QoS 2"),
        (publish(0x32, &format!("{EVENTS}a=1+2")), "filter"),
        (publish(0x32, &format!("{EVENTS}a=#")), "filter"),
        (publish(0x32, "$iothub/twin/GET/?$rid="), "malformed"),
        (publish(0x32, "$iothub/twin/PATCH/properties/desired/?$rid=1"), "malformed"),
        (packet(0x32, &[&with_length(EVENTS), &[0, 1], &vec![0; 262_144]]), "262144"),
        (packet(0x32, &[&with_length(EVENTS), &[0, 0]]), "the id 0"),
        (packet(0x80, &[&[0, 1], &with_length(INPUTS), &[1]]), "flags"),
        (packet(0x10, &[b"\x00\x04MQTT\x04\x02\x00\x3c\x00\x01r"]), "a second CONNECT"),
        (packet(0xF0, &[]), "type 15"),
    ];
    for (bytes, why) in cases {
        let mut rogue = Rogue::connect(&edge, &[])?;
        rogue.send(&bytes);
        rogue.is_closed()?;
        edge.wait_for_violation(why)?;
    }
    let mut rogue = Rogue::dial(&edge)?;
    rogue.send(&publish(0x32, EVENTS));
    rogue.is_closed()?;
    edge.wait_for_violation("before CONNECT")?;
    assert!(edge.outputs().is_empty());
    Ok(())
}

#[test]
fn what_edgehub_bears_is_remembered() -> Result<(), Failure> {
    let edge = edge("forgiven", Times::default())?;
    let mut rogue = Rogue::connect(&edge, &[])?;
    let bag = |bag: &str| format!("{EVENTS}{bag}");
    let dropped = [
        (bag("a=1&b=2&a=3"), "twice"),
        (bag("a=%zz"), "two digits"),
        (bag("a=%ff"), "UTF-8"),
        ("devices/edge-dev-01/modules/other/messages/events/".to_owned(), "is dropped"),
    ];
    for (topic, why) in dropped {
        rogue.publish_acknowledged(&topic, b"x")?;
        edge.wait_for_violation(why)?;
    }
    assert!(edge.outputs().is_empty());
    let stored = [
        (bag("a=b c"), "' ' is not escaped"),
        (bag("a b=c"), "' ' is not escaped"),
        (bag("a"), "no value"),
        (bag("%24.other=1"), "system property"),
        (bag("%24.ct=application%2Fjson"), "no JSON"),
    ];
    for (number, (topic, why)) in stored.into_iter().enumerate() {
        rogue.publish_acknowledged(&topic, b"x")?;
        edge.wait_for_violation(why)?;
        assert_eq!(edge.outputs().len(), number + 1);
    }
    rogue.publish_acknowledged(&bag("$.on=o%2F1&a%26b%3Dc=50%25%2B/"), b"x")?;
    let output = edge.wait_for_output("o/1", 1)?.remove(0);
    assert_eq!(output.property("a&b=c"), "50%+");
    assert_eq!(edge.violations(), Vec::<String>::new());

    rogue.send(&packet(0x30, &[&with_length(EVENTS), b"x"]));
    edge.wait_for_violation("QoS 0")?;
    rogue.send(&packet(0x82, &[&[0, 1], &with_length("devices/+/#"), &[2]]));
    assert_eq!(rogue.packet()?, Some((0x90, vec![0, 1, 1])));
    edge.wait_for_violation("which a module has not")?;
    rogue.send(&packet(0x40, &[&[0, 7]]));
    edge.wait_for_violation("a PUBACK for 7")?;

    edge.disturb(|faults| faults.hold_pubacks = true);
    rogue.publish(&bag("%24.on=held"), 3, b"1");
    rogue.publish(&bag("%24.on=held"), 3, b"2");
    edge.wait_for_output("held", 2)?;
    edge.wait_for_violation("the packet id 3 is used again")?;
    edge.disturb(|faults| faults.hold_pubacks = false);
    assert_eq!(rogue.packet()?, Some((0x40, vec![0, 3])));
    edge.disturb(|faults| faults.cut_before_storing = 1);
    rogue.publish(&bag("%24.on=lost"), 4, b"1");
    rogue.is_closed()?;
    assert!(edge.outputs().iter().all(|output| output.name != "lost"));
    assert_eq!(edge.connects().pop().and_then(|connect| connect.end), Some(End::Cut));
    Ok(())
}

#[test]
fn inputs_come_one_by_one_until_they_are_acknowledged() -> Result<(), Failure> {
    let edge = edge("inputs", Times { input: Duration::from_millis(300), ..Times::default() })?;
    edge.send_input("frames", &[("a b", "ä/+")], b"first")?;
    edge.send_input_as("frames", None, b"second")?;
    let mut rogue = Rogue::connect(&edge, &[METHODS, INPUTS])?;
    let first = rogue.received()?;
    let topic = "devices/edge-dev-01/modules/inferAgent/inputs/frames";
    assert_eq!(first.topic, format!("{topic}/%24.cdid=edge-dev-01&%24.cmid=sensor&a%20b=%C3%A4%2F%2B"));
    assert_eq!((first.body.as_str(), first.duplicate), ("first", false));
    // The second waits for the first, however long that takes.
    let again = rogue.received()?;
    assert_eq!((&again.topic, again.duplicate, again.id), (&first.topic, true, first.id));
    rogue.acknowledge(&first);
    let second = rogue.received()?;
    assert_eq!((second.topic.as_str(), second.body.as_str(), second.duplicate), (topic, "second", false));
    // For the message that came twice, there may be two.
    rogue.acknowledge(&first);
    drop(rogue);
    let mut rogue = Rogue::connect(&edge, &[])?;
    let second = rogue.received()?;
    assert_eq!((second.body.as_str(), second.duplicate), ("second", true));
    assert_eq!(edge.waiting_inputs(), 1);
    assert_eq!(edge.violations(), Vec::<String>::new());

    std::thread::scope(|scope| {
        let call = scope.spawn(|| edge.invoke("m", &json!({}), METHOD));
        let request = loop {
            let received = rogue.received()?;
            if received.topic.starts_with("$iothub") {
                break received;
            }
        };
        // The input is older.
        rogue.acknowledge(&request);
        edge.wait_for_violation("the oldest unacknowledged is")?;
        let (_, rid) = request.topic.split_once("$rid=").ok_or("no rid")?;
        rogue.publish(&format!("$iothub/methods/res/201/?$rid={rid}"), 5, b"[1]");
        assert_eq!(call.join().unwrap()?, (201, json!([1])));
        Ok::<(), Failure>(())
    })?;
    rogue.acknowledge(&second);
    edge.wait_for_inputs()
}

#[test]
fn methods_get_an_answer_in_time_or_none() -> Result<(), Failure> {
    let times = Times { method_connect: Duration::from_secs(20), ..Times::default() };
    let edge = edge("methods", Times { method_delay: Duration::from_millis(100), ..times })?;
    let mut rogue = Rogue::connect(&edge, &[])?;
    let answer = |rogue: &mut Rogue, status: &str, body: &[u8]| -> Result<(), Failure> {
        let request = rogue.received()?;
        rogue.acknowledge(&request);
        let (_, rid) = request.topic.split_once("$iothub/methods/POST/m/?$rid=").ok_or("no rid")?;
        rogue.publish_acknowledged(&format!("$iothub/methods/res/{status}/?$rid={rid}"), body)
    };
    std::thread::scope(|scope| {
        // Waits for the subscription.
        let call = scope.spawn(|| edge.invoke("m", &json!(null), METHOD));
        rogue.send(&packet(0x82, &[&[0, 1], &with_length(METHODS), &[1]]));
        assert_eq!(rogue.packet()?, Some((0x90, vec![0, 1, 1])));
        answer(&mut rogue, "200", b"")?;
        assert_eq!(call.join().unwrap()?, (200, json!(null)));
        assert_eq!(edge.violations(), Vec::<String>::new());
        for (status, body, given, why) in
            [("ok", &b"{}"[..], 400_000, "no integer"), ("200", b"{", 200, "JSON")]
        {
            let call = scope.spawn(|| edge.invoke("m", &json!({}), METHOD));
            answer(&mut rogue, status, body)?;
            assert_eq!(call.join().unwrap()?.0, given);
            edge.wait_for_violation(why)?;
        }
        Ok::<(), Failure>(())
    })?;
    assert_eq!(edge.invoke("m", &json!({}), Duration::from_millis(50))?.0, 504);
    answer(&mut rogue, "200", b"{}")?;
    assert_eq!(edge.late_answers().len(), 1);
    rogue.publish_acknowledged("$iothub/methods/res/200/?$rid=unknown", b"{}")?;
    edge.wait_for_violation("which there was not")?;
    Ok(())
}

#[test]
fn without_a_listener_a_method_is_not_found() -> Result<(), Failure> {
    let edge = edge("no-methods", Times::default())?;
    assert_eq!(edge.invoke("m", &json!({}), METHOD)?.0, 404);
    let _rogue = Rogue::connect(&edge, &[DESIRED])?;
    assert_eq!(edge.invoke("m", &json!({}), METHOD)?.0, 404);
    Ok(())
}

#[test]
fn the_twin_is_answered_as_edgehub_does_and_as_it_is_told() -> Result<(), Failure> {
    let edge = edge("twin", Times::default())?;
    edge.set_desired(&json!({"a": {"b": 1}}));
    let mut rogue = Rogue::connect(&edge, &[])?;
    rogue.publish("$iothub/twin/GET/?$rid=0", 1, b" ");
    assert_eq!(rogue.packet()?, Some((0x40, vec![0, 1])));
    edge.wait_for_violation("without a subscription")?;

    let mut rogue = Rogue::connect(&edge, &[TWIN_ANSWERS, DESIRED])?;
    // The answer is there before the PUBACK.
    let mut request = |topic: &str, body: &[u8]| -> Result<(String, String), Failure> {
        rogue.publish(topic, 9, body);
        let answer = rogue.received()?;
        assert_eq!(rogue.packet()?, Some((0x40, vec![0, 9])));
        rogue.acknowledge(&answer);
        Ok((answer.topic, answer.body))
    };
    let answer = |status: u16, rid: &str| format!("$iothub/twin/res/{status}/?$rid={rid}");
    let (topic, body) = request("$iothub/twin/GET/?$rid=g-1", b"")?;
    assert_eq!(topic, answer(200, "g-1"));
    let twin = r#"{"desired":{"a":{"b":1},"$version":2},"reported":{"$version":1}}"#;
    assert_eq!(body, twin);
    assert_eq!(request(REPORTED, br#"{"x":1,"y":null}"#)?, (answer(204, "1"), String::new()));
    assert_eq!(edge.reported(), json!({"x": 1}));
    edge.disturb(|faults| faults.twin_answers_have_versions = true);
    assert_eq!(request(REPORTED, b"{}")?.0, answer(204, "1&$version=3"));
    assert_eq!(edge.violations(), Vec::<String>::new());
    assert_eq!(request(REPORTED, br#"{"a.b":1}"#)?.0, answer(400, "1"));
    edge.wait_for_violation("a.b")?;
    assert_eq!(request(REPORTED, b"{")?.0, answer(500, "1"));
    edge.wait_for_violation("no JSON")?;
    edge.disturb(|faults| faults.twin_status = Some(429));
    assert_eq!(request(REPORTED, br#"{"x":2}"#)?.0, answer(429, "1"));
    edge.disturb(|faults| (faults.twin_status, faults.twin_is_empty) = (None, true));
    assert_eq!(request("$iothub/twin/GET/?$rid=2", b"")?.1, r#"{"desired":{},"reported":{}}"#);
    assert_eq!(edge.reported(), json!({"x": 1}));

    edge.disturb(|faults| faults.desired_is_silent = true);
    edge.patch_desired(&json!({"a": {"b": 2}}));
    edge.disturb(|faults| faults.desired_is_silent = false);
    edge.set_desired(&json!({"c": []}));
    let patch = rogue.received()?;
    assert_eq!(patch.topic, "$iothub/twin/PATCH/properties/desired/?$version=4");
    assert_eq!(patch.body, r#"{"c":[],"a":null,"$version":4}"#);
    rogue.acknowledge(&patch);

    edge.disturb(|faults| faults.twin_delay = Duration::from_millis(100));
    rogue.publish("$iothub/twin/GET/?$rid=3", 1, b"");
    rogue.publish("$iothub/twin/GET/?$rid=4", 2, b"");
    edge.wait_for_violation("while another waits")?;
    assert_eq!(rogue.packet()?, Some((0x40, vec![0, 1])));
    assert_eq!(rogue.packet()?, Some((0x40, vec![0, 2])));
    assert_eq!(rogue.received()?.topic, answer(200, "3"));
    Ok(())
}
