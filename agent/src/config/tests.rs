use std::collections::BTreeSet;
use std::path::Path;

use super::*;

fn sources(file: Option<&Path>, environment: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Sources {
    Sources {
        file: file.map(Path::to_owned),
        environment: environment.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        flags: flags
            .iter()
            .map(|(key, value)| Flag { name: "--flag", key, value: (*value).to_owned() })
            .collect(),
        host_name: Some("bench 7.lab\n".to_owned()),
        board: None,
    }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn mistakes(sources: &Sources) -> Vec<Mistake> {
    load(sources).config.unwrap_err().0
}

fn place<'a>(loaded: &'a Loaded, key: &str) -> (&'a str, &'a Place) {
    let entry = loaded.entries.iter().find(|entry| entry.key == key).unwrap();
    (&entry.value, &entry.place)
}

#[test]
fn local_bundles_are_a_list() {
    let config = load(&sources(None, &[("EDGEWISE_LOCAL", "/a, /b/2")], &[])).config.unwrap();
    assert_eq!(config.local, [PathBuf::from("/a"), PathBuf::from("/b/2")]);
    assert!(load(&sources(None, &[], &[])).config.unwrap().local.is_empty());
    for empty in [", ,", "/a,", ",/a", " "] {
        assert_eq!(mistakes(&sources(None, &[("EDGEWISE_LOCAL", empty)], &[]))[0].key, "local", "{empty:?}");
    }
}

#[test]
fn a_file_of_mistakes_alone_is_read_at_once() {
    let lines: String = (0..60_000).map(|at| format!("key{at} = 1\n")).collect();
    let routes = "[[route]]\n".repeat(60_000);
    // The first hundred, and what the first routes lack.
    for (text, most) in [(lines, 100), (routes, 100 + 64 * 4)] {
        let told = mistakes(&sources(Some(file(&text).path()), &[], &[])).len();
        assert!((100..=most).contains(&told), "{told}");
    }
}

#[test]
fn the_defaults_are_a_configuration_and_every_key_of_them_is_read() {
    let loaded = load(&sources(None, &[], &[]));
    let config = loaded.config.unwrap();
    assert_eq!(config.device.as_str(), "bench-7.lab");
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:8000");
    assert_eq!(config.http.max_body_bytes, 8 << 20);
    assert_eq!(config.spool_max_bytes, 64 << 20);
    assert_eq!(config.engine.timeout, Duration::from_secs(60));
    assert_eq!((config.settings().collect, config.collect), (None, Collect::default()));
    assert!(config.cloud.broker.is_none() && config.cloud.credentials.is_none());
    assert!(config.has_something_to_serve().is_err());

    let mut reader = Reader::new(&loaded.entries, Place::Default);
    read(&mut reader);
    let keys: BTreeSet<String> = loaded.entries.iter().map(|entry| entry.key.clone()).collect();
    assert_eq!(reader.asked, keys);
}

#[test]
fn the_example_route_of_the_manual_works() {
    let example: String = DEFAULTS
        .lines()
        .skip_while(|line| *line != "#[[route]]")
        .map(|line| format!("{}\n", &line[1..]))
        .collect();
    let file = file(&example);
    let config = load(&sources(Some(file.path()), &[], &[])).config.unwrap();
    let [route] = config.routes.as_slice() else { panic!("{:?}", config.routes) };
    assert_eq!((route.input.as_str(), route.qos), ("sensors/+/window", 0));
}

#[test]
fn the_later_source_wins_and_its_place_is_told() {
    let file = file("device = \"f\"\n[engine]\nqueue = 1\nthreads = 1\ninstances = 2\n");
    let environment =
        [("EDGEWISE_ENGINE_QUEUE", "2"), ("EDGEWISE_ENGINE_THREADS", "2"), ("EDGEWISE_DEVICE", "")];
    let loaded = load(&sources(Some(file.path()), &environment, &[("engine.queue", "3")]));
    let line = |line| Place::File { path: file.path().to_owned(), line: Some(line) };
    assert_eq!(place(&loaded, "engine.queue"), ("3", &Place::Flag("--flag")));
    assert_eq!(
        place(&loaded, "engine.threads"),
        ("2", &Place::Environment("EDGEWISE_ENGINE_THREADS".to_owned()))
    );
    assert_eq!(place(&loaded, "engine.instances"), ("2", &line(5)));
    assert_eq!(place(&loaded, "device"), ("f", &line(1)), "an empty variable counts as none");
    assert_eq!(place(&loaded, "engine.timeout"), ("60s", &Place::Default));
    let settings = loaded.config.unwrap().settings();
    assert_eq!((settings.queue, settings.threads, settings.instances), (3, 2, 2));
}

#[test]
fn every_mistake_of_every_source_is_told_at_once_with_its_place() {
    let file = file(
        "[http]\nlisten = \"everywhere\"\nlissten = 1\nmax_body_bytes = [1]\n[htpp]\nlisten = 2\n\
         [[route]]\nbroker = \"tcp://x\"\ninput = \"a/#\"\nmodel = \"m\"\noutput = \"a/b\"\n",
    );
    let environment = [
        ("EDGEWISE_ENGINE_QUEUE", "many"),
        ("EDGEWISE_CLOUD_BROKR", "x"),
        ("EDGEWISE_URL", "http://registry"),
        ("EDGEWISE_TEST_ONNXRUNTIME", "x"),
        ("PATH", "/bin"),
    ];
    let told = mistakes(&sources(Some(file.path()), &environment, &[("engine.provider", "gpu")]));
    let told: Vec<String> = told.iter().map(ToString::to_string).collect();
    let path = file.path().display();
    let expected = [
        format!("file {path}:3: http.lissten: unknown key; did you mean http.listen?"),
        format!("file {path}:4: http.max_body_bytes: must be a single value"),
        format!("file {path}:5: htpp: unknown section; did you mean http?"),
        "environment EDGEWISE_CLOUD_BROKR: unknown variable; did you mean EDGEWISE_CLOUD_BROKER?".to_owned(),
        format!("file {path}:2: http.listen: \"everywhere\" must be an address and a port"),
        "flag --flag: engine.provider: unknown provider `gpu`".to_owned(),
        "environment EDGEWISE_ENGINE_QUEUE: engine.queue: \"many\" must be a number from 1 to 4096"
            .to_owned(),
        format!("file {path}:8: route[1].broker: \"tcp://x\" is no broker"),
        format!("file {path}:11: route[1].output: \"a/b\" is matched by input \"a/#\""),
    ];
    for expected in &expected {
        assert!(
            told.iter().any(|told| told.starts_with(expected)),
            "{expected}\nnot in\n{}",
            told.join("\n")
        );
    }
    assert_eq!(told.len(), expected.len(), "{}", told.join("\n"));
}

#[test]
fn what_is_missing_in_a_route_is_told_where_the_route_stands() {
    let file = file("\n[[route]]\nbroker = \"mqtt://localhost\"\ninput = \"a\"\nmodel = \"m\"\n");
    let told = mistakes(&sources(Some(file.path()), &[], &[]));
    let place = Place::File { path: file.path().to_owned(), line: Some(2) };
    assert_eq!(told, [Mistake::new("route[1].output", &place, "is missing")]);
}

#[test]
fn a_file_that_is_no_toml_is_told_with_its_line() {
    let file = file("device = \"d\"\n[http\nlisten = 1\n");
    let told = mistakes(&sources(Some(file.path()), &[], &[]));
    assert_eq!(told[0].place, Place::File { path: file.path().to_owned(), line: Some(2) });
    let gone = mistakes(&sources(Some(Path::new("/nowhere/agent.toml")), &[], &[]));
    assert!(gone[0].what.starts_with("reading it"), "{gone:?}");
}

#[test]
fn a_routes_broker_elsewhere_must_be_asked_for() {
    let route = "\n[[route]]\nbroker = \"mqtt://plc.lan\"\ninput = \"a\"\nmodel = \"m\"\noutput = \"b\"\n";
    let plain = file(route);
    let told = mistakes(&sources(Some(plain.path()), &[], &[]));
    assert_eq!(told.iter().map(|told| told.key.as_str()).collect::<Vec<_>>(), ["route[1].broker"]);
    let asked = file(&format!("{route}insecure_remote = true\n"));
    assert!(load(&sources(Some(asked.path()), &[], &[])).config.is_ok());
}

#[test]
fn what_can_be_reached_from_elsewhere_must_be_asked_for() {
    let open = [("http.listen", "0.0.0.0:8000"), ("cloud.broker", "mqtt://broker.example")];
    let told = mistakes(&sources(None, &[], &open));
    assert_eq!(
        told.iter().map(|told| told.key.as_str()).collect::<Vec<_>>(),
        ["cloud.broker", "http.listen"]
    );
    let asked = [("EDGEWISE_HTTP_INSECURE_REMOTE", "true"), ("EDGEWISE_CLOUD_INSECURE_REMOTE", "true")];
    assert!(load(&sources(None, &asked, &open)).config.is_ok());
    for fine in ["mqtt://localhost", "mqtt://127.0.0.2:1883", "mqtt://[::1]", "mqtts://broker.example"] {
        assert!(load(&sources(None, &[], &[("cloud.broker", fine)])).config.is_ok(), "{fine}");
    }
}

#[test]
fn secrets_are_read_from_files_and_never_shown() {
    let secret = file("hunter2\r\n");
    let path = secret.path().to_str().unwrap();
    let flags = [("cloud.username", "me"), ("cloud.password_file", path)];
    let loaded = load(&sources(None, &[], &flags));
    let shown = format!("{loaded:?}");
    assert_eq!(loaded.config.unwrap().cloud.credentials.unwrap().password, "hunter2");
    let wrong = load(&sources(None, &[("EDGEWISE_CLOUD_BROKER", "mqtts://me:hunter2@host")], &flags[..1]));
    let shown = format!("{shown}{wrong:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    let told = wrong.config.unwrap_err().0;
    assert_eq!(
        told.iter().map(|told| told.key.as_str()).collect::<Vec<_>>(),
        ["cloud.broker", "cloud.username"]
    );
}

#[test]
fn what_is_left_open_follows_the_board() {
    let loaded = |describe: fn(&Path) -> Board, flags: &[(&'static str, &str)]| {
        load(&Sources { board: Some(describe), ..sources(None, &[], flags) })
    };
    let small = loaded(|data| board(data, 2, 512 << 20, 4 << 30), &[("vault.max_bytes", "100 MiB")]);
    assert_eq!(place(&small, "spool.max_bytes"), ("256 MiB", &Place::Board));
    assert_eq!(place(&small, "vault.max_bytes"), ("100 MiB", &Place::Flag("--flag")));
    assert_eq!(place(&small, "http.max_body_bytes"), ("8 MiB", &Place::Board));
    assert_eq!(small.config.unwrap().capture.bytes, 16 << 20);

    // A container of 64 MiB on a partition of 600 MB: whole mebibytes, and never below the least.
    let tiny = loaded(|data| board(data, 1, 64 << 20, 600_000_000), &[]);
    assert_eq!(place(&tiny, "spool.max_bytes"), ("35 MiB", &Place::Board));
    assert_eq!(place(&tiny, "vault.max_bytes"), ("143 MiB", &Place::Board));
    assert_eq!(place(&tiny, "http.max_body_bytes"), ("1 MiB", &Place::Board));
    assert_eq!(place(&tiny, "collect.queue_bytes"), ("2 MiB", &Place::Board));

    let unknown = loaded(|_| Board::default(), &[]);
    assert_eq!(place(&unknown, "spool.max_bytes"), ("64 MiB", &Place::Default));
    assert_eq!(unknown.config.unwrap().engine.threads, 0);
}

fn board(data: &Path, cores: u32, memory: u64, disk: u64) -> Board {
    assert_eq!(data, Path::new("/var/lib/edgewise"));
    let mut board = Board::default();
    board.cores.quota = Some(cores.into());
    (board.memory.total, board.memory.limit) = (Some(8 << 30), Some(memory));
    board.disk = Some(crate::board::Disk {
        mounted: "/".into(),
        file_system: "ext4".to_owned(),
        medium: None,
        read_only: false,
        size: Some(disk),
        free: None,
    });
    board
}
