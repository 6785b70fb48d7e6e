use serde_json::json;

use super::writer::PAUSE;
use super::*;
use crate::module::reported::tests::check;

const SECOND: Duration = Duration::from_secs(1);

/// A twin, the time, and what edgeHub holds and acknowledges.
struct Bench {
    twin: Twin,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self { twin: Twin::new("boot"), now: Instant::now() }
    }

    /// Connected, and at this version of these desired properties.
    fn at(version: u64, desired: Value) -> Self {
        let mut bench = Self::new();
        let rid = bench.connect();
        assert_eq!(bench.answer(&rid, twin(Some(version), &desired, &json!({}))), [Act::Apply]);
        bench
    }

    fn connect(&mut self) -> String {
        get(&self.twin.connected(self.now))
    }

    fn answer(&mut self, rid: &str, body: Value) -> Vec<Act> {
        self.twin.answer(200, rid, body.to_string().as_bytes(), self.now)
    }

    fn patch(&mut self, version: u64, patch: Value) -> Vec<Act> {
        self.twin.patch(Some(version), patch.to_string().as_bytes(), self.now)
    }

    fn report(&mut self, wanted: Value) -> Vec<Act> {
        self.twin.report(object(wanted), self.now)
    }

    fn after(&mut self, time: Duration) -> Vec<Act> {
        self.now += time;
        self.twin.tick(self.now)
    }

    /// Goes to the time that the twin asks for; how far that was, and what it does there.
    fn when_due(&mut self) -> (Duration, Vec<Act>) {
        let wait = self.twin.due().unwrap() - self.now;
        (wait, self.after(wait))
    }

    fn acknowledge(&mut self, rid: &str) -> Vec<Act> {
        self.twin.answer(204, rid, b"", self.now)
    }

    fn desired(&self) -> Value {
        self.twin.desired().clone().into()
    }
}

fn object(value: Value) -> Object {
    let Value::Object(object) = value else { panic!("{value}") };
    object
}

fn twin(version: Option<u64>, desired: &Value, reported: &Value) -> Value {
    let mut twin = json!({"desired": desired, "reported": reported});
    if let Some(version) = version {
        twin["desired"]["$version"] = version.into();
        twin["reported"]["$version"] = 3.into();
    }
    twin
}

fn get(acts: &[Act]) -> String {
    let [Act::Get { rid }] = acts else { panic!("{acts:?}") };
    rid.clone()
}

fn written(acts: &[Act]) -> (String, Value) {
    let [Act::Patch { rid, body }] = acts else { panic!("{acts:?}") };
    let patch = serde_json::from_slice(body).unwrap();
    check(&patch).unwrap();
    (rid.clone(), patch)
}

#[test]
fn it_is_read_at_every_connect_and_changes_follow() {
    let mut bench = Bench::at(3, json!({"a": {"b": 1, "c": 2}, "$metadata": {}}));
    assert_eq!((bench.twin.version(), bench.desired()), (Some(3), json!({"a": {"b": 1, "c": 2}})));
    assert_eq!(bench.patch(4, json!({"a": {"b": null, "d": [1]}, "$version": 4})), [Act::Apply]);
    assert_eq!((bench.twin.version(), bench.desired()), (Some(4), json!({"a": {"c": 2, "d": [1]}})));
    for old in [3, 4] {
        assert_eq!(bench.patch(old, json!({"a": null})), [], "version {old} is known");
    }
    bench.twin.disconnected();
    assert_eq!(bench.patch(5, json!({"a": null})), []);
    assert_eq!(bench.twin.due(), None);
    let rid = bench.connect();
    assert_eq!(bench.answer(&rid, twin(Some(4), &json!({"a": {"c": 2, "d": [1]}}), &json!({}))), []);
    assert_eq!(bench.when_due().0, REFRESH);
}

#[test]
fn what_was_known_before_a_restart_is_not_applied_again() {
    let mut bench = Bench::new();
    bench.twin.restore(object(json!({"a": 1, "$version": 4})), Some(4));
    let rid = bench.connect();
    assert_eq!(bench.answer(&rid, twin(Some(4), &json!({"a": 1}), &json!({}))), []);
    assert_eq!(bench.twin.version(), Some(4));
}

#[test]
fn a_gap_is_closed_by_reading() {
    let mut bench = Bench::at(3, json!({"a": 1}));
    let rid = get(&bench.patch(6, json!({"b": 1})));
    assert_eq!(bench.desired(), json!({"a": 1}));
    assert_eq!(bench.answer(&rid, twin(Some(6), &json!({"b": 1}), &json!({}))), [Act::Apply]);
    // A module that was made anew begins anew.
    let rid = bench.connect();
    assert_eq!(bench.answer(&rid, twin(Some(1), &json!({}), &json!({}))), [Act::Apply]);
    assert_eq!((bench.twin.version(), bench.desired()), (Some(1), json!({})));
}

#[test]
fn a_change_during_a_read_is_not_lost() {
    let mut bench = Bench::new();
    let rid = bench.connect();
    assert_eq!(bench.patch(5, json!({"a": 2})), []);
    assert_eq!(bench.answer(&rid, twin(Some(4), &json!({"a": 1}), &json!({}))), [Act::Apply]);
    let (wait, acts) = bench.when_due();
    assert_eq!(wait, SECOND);
    assert_eq!(bench.answer(&get(&acts), twin(Some(5), &json!({"a": 2}), &json!({}))), [Act::Apply]);
    assert_eq!(bench.when_due().0, REFRESH);

    let rid = bench.connect();
    assert_eq!(bench.patch(6, json!({"a": 3})), []);
    assert_eq!(bench.answer(&rid, twin(Some(6), &json!({"a": 3}), &json!({}))), [Act::Apply]);
    assert_eq!(bench.when_due().0, REFRESH, "the answer had it");
}

#[test]
fn an_empty_twin_changes_nothing_and_is_read_again() {
    let mut bench = Bench::at(3, json!({"a": 1}));
    let rid = bench.connect();
    assert_eq!(bench.answer(&rid, twin(None, &json!({}), &json!({}))), []);
    assert_eq!((bench.twin.version(), bench.desired()), (Some(3), json!({"a": 1})));

    let mut bench = Bench::new();
    let rid = bench.connect();
    assert_eq!(bench.answer(&rid, twin(None, &json!({}), &json!({}))), []);
    let (wait, acts) = bench.when_due();
    assert_eq!(wait, EMPTY_REFRESH);
    let empty = twin(None, &json!({}), &json!({}));
    assert_eq!(bench.answer(&get(&acts), empty), []);
    let acts = bench.patch(0, json!({"a": 1}));
    assert_eq!(bench.twin.version(), None, "nothing is known that it could follow on");
    assert_eq!(bench.answer(&get(&acts), twin(Some(4), &json!({}), &json!({}))), [Act::Apply]);
}

#[test]
fn a_read_that_fails_is_repeated_with_growing_pauses() {
    let mut bench = Bench::new();
    let mut rid = bench.connect();
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        assert_eq!(bench.twin.answer(429, &rid, b"slow down", bench.now), []);
        // Whoever sends changes does not make it faster.
        assert_eq!(bench.patch(9, json!({})), []);
        let (wait, acts) = bench.when_due();
        assert_eq!(wait, SECOND * seconds);
        rid = get(&acts);
    }
    assert_eq!(bench.when_due(), (ANSWER_TIMEOUT, vec![]), "silence");
    let rid = get(&bench.when_due().1);
    assert_eq!(bench.answer(&rid, twin(Some(1), &json!({}), &json!({}))), [Act::Apply]);
    assert_eq!(bench.twin.counts().failed_reads, 9);
    assert_eq!(bench.when_due().0, REFRESH);
}

#[test]
fn answers_that_cannot_be_believed_change_nothing() {
    let huge = json!({"desired": {"a": "x".repeat(MAX_DESIRED_BYTES), "$version": 9}}).to_string();
    let larger = " ".repeat(MAX_TWIN_BYTES + 1);
    let deep = format!("{}{}", r#"{"desired":{"$version":9,"a":"#, "[".repeat(10_000));
    let bodies: [&str; 9] = [
        "",
        "[]",
        "{}",
        "null",
        r#"{"desired": 1}"#,
        r#"{"desired": {"$version": -1}}"#,
        &huge,
        &larger,
        &deep,
    ];
    for body in bodies {
        let mut bench = Bench::at(3, json!({"a": 1}));
        let rid = bench.connect();
        assert_eq!(bench.twin.answer(200, "boot-read-1", b"{}", bench.now), [], "an answer of before");
        assert_eq!(bench.twin.answer(200, &rid, body.as_bytes(), bench.now), []);
        assert_eq!((bench.twin.version(), bench.desired()), (Some(3), json!({"a": 1})));
        let counts = bench.twin.counts();
        assert_eq!((counts.failed_reads, counts.unasked_answers), (1, 1), "{}", &body[..body.len().min(40)]);
        assert_eq!(bench.twin.answer(200, &rid, b"{}", bench.now), [], "it was answered");
    }
}

#[test]
fn changes_that_cannot_be_believed_are_read_instead() {
    for (version, body) in [(Some(4), "["), (Some(4), "[1]"), (None, "{}"), (Some(4), r#"{"$version":"4"}"#)]
    {
        let mut bench = Bench::at(3, json!({"a": 1}));
        let acts = bench.twin.patch(version, body.as_bytes(), bench.now);
        get(&acts);
        assert_eq!((bench.desired(), bench.twin.counts().refused_changes), (json!({"a": 1}), 1), "{body}");
        // Nor does another while that read is under way, and it is not forgotten.
        assert_eq!(bench.twin.patch(version, body.as_bytes(), bench.now), []);
    }
}

#[test]
fn many_small_changes_make_no_large_document() {
    let mut bench = Bench::at(1, json!({}));
    let text = "x".repeat(20_000);
    for version in 2..=4 {
        assert_eq!(bench.patch(version, json!({format!("k{version}"): text})), [Act::Apply]);
    }
    get(&bench.patch(5, json!({"k5": text})));
    assert_eq!(bench.twin.version(), Some(4));
}

#[test]
fn nothing_is_reported_before_the_twin_was_read_and_then_stale_keys_are_removed() {
    let mut bench = Bench::new();
    let state = json!({"agent": {"version": "2"}, "models": {"a": {"version": 1}}});
    assert_eq!(bench.report(state.clone()), []);
    let rid = bench.connect();
    let reported = json!({
        "agent": {"version": "1", "old": 1}, "models": {"a": {"version": 1, "why": "x"}, "b": {}}, "ledger": {},
        "foreign": {"x": 1},
    });
    let acts = bench.answer(&rid, twin(Some(1), &json!({}), &reported));
    assert_eq!(acts[0], Act::Apply);
    let (rid, patch) = written(&acts[1..]);
    assert_eq!(
        patch,
        json!({"agent": {"version": "2", "old": null}, "models": {"a": {"version": 1, "why": null}, "b": null},
               "ledger": null})
    );
    assert_eq!(bench.acknowledge(&rid), []);
    assert_eq!(bench.after(PAUSE), []);
    assert_eq!(bench.report(state), [], "nothing has changed");
}

#[test]
fn patches_are_small_one_at_a_time_and_not_too_many() {
    let mut bench = Bench::at(1, json!({}));
    let (first, _) = written(&bench.report(json!({"agent": {"a": 1, "b": 1}, "models": {}})));
    assert_eq!(bench.report(json!({"agent": {"a": 2, "b": 1}, "models": {}})), []);
    assert_eq!(bench.after(PAUSE), [], "one is in flight");
    let (second, patch) = written(&bench.acknowledge(&first));
    assert_eq!(patch, json!({"agent": {"a": 2}}));
    assert_eq!(bench.acknowledge(&second), []);
    assert_eq!(bench.report(json!({"agent": {"a": 3}, "models": {}})), [], "too soon");
    let (wait, acts) = bench.when_due();
    assert_eq!(wait, PAUSE);
    let (third, patch) = written(&acts);
    assert_eq!(patch, json!({"agent": {"a": 3, "b": null}}));
    assert_eq!(bench.acknowledge("boot-write-9"), []);
    assert_eq!(bench.acknowledge(&third), []);
    assert_eq!(bench.twin.counts().unasked_answers, 1);
    let (_, acts) = bench.when_due();
    get(&acts);
}

#[test]
fn what_may_not_have_arrived_is_said_again_whole() {
    let mut bench = Bench::at(1, json!({}));
    let (rid, _) = written(&bench.report(json!({"agent": {"a": 1}, "models": {}})));
    bench.acknowledge(&rid);
    bench.after(PAUSE);
    written(&bench.report(json!({"agent": {"a": 1}, "models": {"x": 1}})));
    bench.report(json!({"agent": {"a": 1}, "models": {}}));
    let (wait, acts) = bench.when_due();
    assert_eq!((wait, acts), (ANSWER_TIMEOUT, vec![]));
    let (wait, acts) = bench.when_due();
    assert_eq!(wait, SECOND);
    let (rid, patch) = written(&acts);
    assert_eq!(patch, json!({"agent": {"a": 1}, "models": {"x": null}}));
    for seconds in [2, 4, 8] {
        let rid = if seconds == 2 { rid.clone() } else { format!("boot-write-{}", 3 + seconds / 4) };
        assert_eq!(bench.twin.answer(500, &rid, b"", bench.now), []);
        let (wait, acts) = bench.when_due();
        assert_eq!((wait, written(&acts).1), (SECOND * seconds, patch.clone()));
    }
    assert_eq!(bench.twin.counts().failed_reports, 4);
}

#[test]
fn a_lost_connection_forgets_what_was_acknowledged() {
    let mut bench = Bench::at(1, json!({}));
    let state = json!({"agent": {"a": 1}});
    let (rid, _) = written(&bench.report(state.clone()));
    bench.twin.disconnected();
    assert_eq!(bench.acknowledge(&rid), []);
    assert_eq!(bench.after(PAUSE), []);
    let read = bench.connect();
    let (_, patch) = written(&bench.answer(&read, twin(Some(1), &json!({}), &state)));
    assert_eq!(patch, state, "whole, though the hub may have it");
}

#[test]
fn what_is_refused_is_not_said_again_before_it_changes() {
    let mut bench = Bench::at(1, json!({}));
    let (rid, _) = written(&bench.report(json!({"agent": {"a": 1}})));
    assert_eq!(bench.twin.answer(400, &rid, b"too deep", bench.now), []);
    assert_eq!(bench.report(json!({"agent": {"a": 1}})), []);
    assert_eq!(bench.after(PAUSE * 100), []);
    assert_eq!(bench.twin.counts().refused_reports, 1);
    let (rid, patch) = written(&bench.report(json!({"agent": {"a": 2}})));
    assert_eq!(patch, json!({"agent": {"a": 2}}));
    assert_eq!(bench.report(json!({"agent": {"a": 3}})), []);
    bench.now += PAUSE;
    let (_, patch) = written(&bench.twin.answer(400, &rid, b"", bench.now));
    assert_eq!(patch, json!({"agent": {"a": 3}}), "it changed meanwhile");
}

#[test]
fn what_is_gone_goes_first_where_all_does_not_fit_at_once() {
    let mut bench = Bench::new();
    let models = |name: &str| {
        let models = (0..60).map(|at| (format!("{name}-{at}"), json!({"why": "x".repeat(470)})));
        Value::from(models.collect::<Object>())
    };
    bench.report(json!({"models": models("new-name-of-a-model-that-is-as-long-as-it-may-be")}));
    let rid = bench.connect();
    let long = "o".repeat(60);
    let acts = bench.answer(&rid, twin(Some(1), &json!({}), &json!({"models": models(&long)})));
    let (rid, patch) = written(&acts[1..]);
    assert!(patch["models"].as_object().unwrap().values().all(Value::is_null));
    assert_eq!(bench.acknowledge(&rid), []);
    let (_, patch) = written(&bench.after(PAUSE));
    assert_eq!(patch["models"].as_object().unwrap().len(), 60);
}
