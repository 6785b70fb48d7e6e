use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::module::merge::Object;

const DIGEST: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn object(value: Value) -> Object {
    let Value::Object(object) = value else { panic!("{value}") };
    object
}

fn wishes(value: Value) -> Wishes {
    let (wishes, mistakes) = read(&object(value), &Wishes::default());
    assert_eq!(mistakes, []);
    wishes
}

/// What is left of `previous`, and the paths at which something is wrong.
fn over(previous: &Wishes, value: Value) -> (Wishes, Vec<String>) {
    let (wishes, mistakes) = read(&object(value), previous);
    (wishes, mistakes.into_iter().map(|mistake| mistake.path).collect())
}

fn errors(value: Value) -> Vec<String> {
    let (_, mistakes) = read(&object(value), &Wishes::default());
    mistakes.into_iter().map(|mistake| format!("{}: {}", mistake.path, mistake.error)).collect()
}

fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

#[test]
fn every_key_is_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hunter2\n").unwrap();
    let path = file.path().to_str().unwrap();
    let wishes = wishes(json!({
        "$version": 7, "$metadata": {"$lastUpdated": "x"},
        "models": {"power-demand": {
            "$metadata": {}, "version": 3, "digest": DIGEST, "source": "https://host/x.bundle", "size": 141276.0,
            "attempt": 2, "settings": {"provider": "cpu", "threads": 0, "instances": 2, "queue": 8,
                                       "maxBatch": 16, "maxDelay": "500us", "preferredBatch": [4, 8],
                                       "optimization": "basic", "arena": false,
                                       "collect": {"enabled": false}}},
            "other": {"version": 1, "digest": DIGEST}, "gone": null},
        "routes": [{"input": "readings", "model": "power-demand", "output": "predictions"},
                   {"input": "readings", "model": "other", "output": "predictions"}],
        "collect": {"rate": 0.5},
        "registry": {"broker": "mqtts://host", "root": "edgewise/v1/plant", "device": "d-1", "username": "u",
                     "passwordFile": path, "authorities": path, "certificate": path, "key": path,
                     "keepAlive": "2m", "insecureRemote": false},
        "logLevel": "debug",
    }));
    let models = wishes.models.unwrap();
    assert_eq!(models.keys().map(ModelName::as_str).collect::<Vec<_>>(), ["other", "power-demand"]);
    let model = &models[&name("power-demand")];
    assert_eq!((model.version, model.size, model.attempt), (3, Some(141_276), 2));
    assert_eq!(model.source, Source::Https("https://host/x.bundle".to_owned()));
    let settings = &model.settings;
    assert_eq!((settings.threads, settings.instances, settings.queue), (Some(0), Some(2), Some(8)));
    assert_eq!((settings.max_batch, settings.max_delay_us), (Some(16), Some(500)));
    assert_eq!(settings.preferred_batch, Some(vec![4, 8]));
    assert_eq!((settings.optimization.as_deref(), settings.arena), (Some("basic"), Some(false)));
    assert_eq!(settings.collect, Some(Collect { enabled: false, rate: 1.0 }));
    let other = &models[&name("other")];
    assert_eq!((&other.source, other.size, other.attempt), (&Source::Registry, None, 0));
    assert_eq!(other.settings, ModelSettings::default());
    assert_eq!(wishes.routes.unwrap().len(), 2);
    assert_eq!(wishes.collect, Some(Collect { enabled: true, rate: 0.5 }));
    let registry = wishes.registry.unwrap();
    assert_eq!(registry.broker.to_string(), "mqtts://host:8883");
    assert_eq!(registry.credentials.unwrap().password, "hunter2");
    assert_eq!(registry.keep_alive, Some(Duration::from_secs(120)));
    assert_eq!(wishes.log_level.as_deref(), Some("debug"));
}

#[test]
fn an_empty_document_wishes_nothing_and_an_empty_section_something() {
    assert_eq!(wishes(json!({"$version": 1})), Wishes::default());
    let empty = wishes(json!({"models": {}, "routes": []}));
    assert_eq!((empty.models, empty.routes), (Some(BTreeMap::new()), Some(Vec::new())));
}

#[test]
fn a_mistake_leaves_what_it_would_have_changed_and_nothing_else() {
    let previous = wishes(json!({
        "models": {"a": {"version": 1, "digest": DIGEST}, "b": {"version": 1, "digest": DIGEST}},
        "routes": [{"input": "x", "model": "a", "output": "y"}],
        "collect": {"rate": 0.5},
        "registry": {"broker": "mqtt://localhost"},
        "logLevel": "debug",
    }));
    let (now, wrong) = over(
        &previous,
        json!({
            "models": {"a": {"version": 2, "digest": "x"}, "b": {"version": 2, "digest": DIGEST},
                       "c": {"digest": DIGEST, "version": -1}, "D": {}},
            "routes": [{"input": "x", "model": "b", "output": "y"}, {"input": "x/", "model": "b", "output": "y"}],
            "collect": {"rate": 2},
            "registry": {"broker": "mqtt://elsewhere"},
            "logLevel": "loud",
        }),
    );
    assert_eq!(
        wrong,
        [
            "models.a.digest",
            "models.c.version",
            "models.D",
            "routes[1].input",
            "collect.rate",
            "registry.broker",
            "logLevel"
        ]
    );
    let models = now.models.as_ref().unwrap();
    assert_eq!((models[&name("a")].version, models[&name("b")].version), (1, 2));
    assert_eq!(now.unclear, BTreeSet::from([name("c")]));
    let unchanged = Wishes { models: previous.models.clone(), unclear: BTreeSet::new(), ..now };
    assert_eq!(unchanged, previous);

    let (whole, wrong) = over(
        &previous,
        json!({"models": 1, "routes": {}, "collect": [], "registry": "mqtt://localhost", "logLevel": 1}),
    );
    assert_eq!(wrong, ["models", "routes", "collect", "registry", "logLevel"]);
    assert_eq!(whole, previous);
}

#[test]
fn what_is_unknown_is_told_and_changes_nothing() {
    let previous = Wishes::default();
    let (now, wrong) = over(
        &previous,
        json!({"modles": {}, "models": {"a": {"version": 1, "digest": DIGEST, "setings": {}}}, "x": {"y": {}}}),
    );
    assert_eq!(wrong, ["modles", "x", "models.a.setings"]);
    assert_eq!(now.models.unwrap().len(), 1);
    let told = errors(json!({"modles": {}, "registry": {"broker": "mqtt://localhost", "password_file": 1}}));
    assert_eq!(
        told,
        [
            "modles: unknown key; did you mean models?",
            "registry.password_file: unknown key; did you mean passwordFile?"
        ]
    );
}

#[test]
fn values_are_held_to_the_limits_of_the_configuration() {
    let settings =
        |settings: Value| json!({"models": {"a": {"version": 1, "digest": DIGEST, "settings": settings}}});
    for bad in [
        json!({"provider": "gpu"}),
        json!({"threads": 257}),
        json!({"threads": 1.5}),
        json!({"instances": 0}),
        json!({"queue": 4097}),
        json!({"queue": "64"}),
        json!({"maxBatch": 4097}),
        json!({"maxDelay": "2s"}),
        json!({"preferredBatch": [0]}),
        json!({"preferredBatch": 4}),
        json!({"optimization": "most"}),
        json!({"arena": 1}),
        json!({"preferredBatch": vec![1; 17]}),
        json!({"collect": {"rate": 1.01}}),
        json!({"collect": {"enabled": 1}}),
        json!([]),
    ] {
        assert_eq!(errors(settings(bad.clone())).len(), 1, "{bad}");
    }
    let model = |key: &str, value: Value| {
        let mut model = json!({"version": 1, "digest": DIGEST});
        model[key] = value;
        json!({"models": {"a": model}})
    };
    for (key, bad) in [
        ("version", json!(0)),
        ("version", json!(1u64 << 52)),
        ("version", json!(1e300)),
        ("version", json!("1")),
        ("digest", json!("aa")),
        ("source", json!("http://host/x.bundle")),
        ("source", json!("file://x.bundle")),
        ("size", json!(0)),
        ("size", json!(u64::MAX)),
        ("attempt", json!(-1)),
    ] {
        let told = errors(model(key, bad.clone()));
        assert!(
            matches!(told.as_slice(), [only] if only.starts_with(&format!("models.a.{key}: "))),
            "{told:?}"
        );
    }
    let many: Object = (0..65).map(|at| (format!("m{at}"), json!({}))).collect();
    assert_eq!(errors(json!({"models": many})), ["models: there are 65 models, 64 are possible"]);
    let many = vec![json!({}); 65];
    assert_eq!(errors(json!({"routes": many})), ["routes: there are 65 routes, 64 are possible"]);
    let twice = vec![json!({"input": "a", "model": "m", "output": "b"}); 2];
    assert_eq!(errors(json!({"routes": twice})), ["routes[1]: stands there twice, and would answer twice"]);
}

#[test]
fn a_registry_is_refused_as_the_configuration_refuses_one() {
    let paths = |registry: Value| {
        let told = errors(json!({"registry": registry}));
        told.into_iter().map(|told| told.split(':').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(paths(json!({})), ["registry.broker"]);
    assert_eq!(paths(json!({"broker": "mqtt://elsewhere", "insecureRemote": true})), [""; 0]);
    assert_eq!(paths(json!({"broker": "mqtts://h", "username": "u"})), ["registry.username"]);
    assert_eq!(paths(json!({"broker": "mqtts://h", "key": "/nowhere"})), ["registry.key", "registry.key"]);
    assert_eq!(paths(json!({"broker": "mqtts://h", "keepAlive": "1h"})), ["registry.keepAlive"]);
    assert_eq!(paths(json!({"broker": "mqtts://h", "insecureRemote": "yes"})), ["registry.insecureRemote"]);
    let told = errors(json!({"registry": {"broker": "mqtts://me:secret@host"}}));
    assert!(!told.concat().contains("secret"), "{told:?}");
}

fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(json!("registry")),
        Just(json!(DIGEST)),
        (0u64..4).prop_map(Value::from),
    ];
    let key = prop_oneof![
        Just("models"),
        Just("routes"),
        Just("collect"),
        Just("registry"),
        Just("logLevel"),
        Just("version"),
        Just("digest"),
        Just("settings"),
        Just("a"),
        Just("broker"),
        Just("input"),
        Just("$x"),
        Just("é.é"),
    ];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6).prop_map(|pairs| {
                Value::Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn no_document_is_a_panic(models in anything(), other in anything()) {
        let document = json!({"models": {"a": models.clone(), "b": other.clone()}, "routes": [other],
                              "collect": models.clone(), "registry": models.clone(), "x": models});
        let (wishes, mistakes) = read(&object(document), &Wishes::default());
        prop_assert!(!mistakes.is_empty());
        let known = wishes.models.map_or(0, |models| models.len()) + wishes.unclear.len();
        prop_assert!(known <= 2);
    }
}

/// The corpus that the twin's published schema is held to as well: `PATH~WHAT.json` are the bad ones.
#[test]
fn the_published_corpus_is_read_as_its_schema_says() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/twin");
    let read = |path: &std::path::Path| {
        let document = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        over(&Wishes::default(), document).1
    };
    let files = |folder: &str| {
        let entries = corpus.join(folder).read_dir().unwrap();
        entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    for path in files("good") {
        // A schema can't know which files there are.
        let about_files =
            ["passwordFile", "authorities", "certificate", "key"].map(|key| format!("registry.{key}"));
        let mistakes: Vec<_> = read(&path).into_iter().filter(|at| !about_files.contains(at)).collect();
        assert!(mistakes.is_empty(), "{}: {mistakes:?}", path.display());
    }
    for path in files("bad") {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let expected = name.split('~').next().unwrap().to_owned();
        let mistakes = read(&path);
        assert!(mistakes.contains(&expected), "{name}: {mistakes:?}");
    }
}
