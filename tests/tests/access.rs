//! Who may come in: nobody from elsewhere without a token, and with one only those who show it.

use std::process::Output;
use std::time::Duration;

use e2e::client::Client;
use e2e::files;
use e2e::process::{Cloud, Failure, Process, run_agent};

#[test]
fn a_registry_that_others_can_reach_needs_a_token() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/access-open")?;
    let data = directory.join("cloud").display().to_string();
    let log = directory.join("serve.log");
    let arguments = ["serve", "--data", &data, "--http", "0.0.0.0:0", "--mqtt-listen", "127.0.0.1:0"];
    let mut refused = Process::start("edgewise", arguments, &[], &log)?;
    assert_eq!(refused.wait(Duration::from_secs(30)), Some(2));
    assert!(refused.log_tail().contains("--token-file"), "{}", refused.log_tail());
    Ok(())
}

#[test]
fn an_agent_that_others_can_reach_has_to_be_told_so() -> Result<(), Failure> {
    let data = e2e::fresh_directory("e2e/access-agent")?.display().to_string();
    let bundle = e2e::data::sample(Some(1)).display().to_string();
    let output = run_agent(&["run", "--local", &bundle, "--data", &data, "--http", "0.0.0.0:0"])?;
    assert_eq!(output.status.code(), Some(78));
    assert!(error(&output).contains("http.insecure_remote"), "{}", error(&output));
    let output =
        run_agent(&["run", "--cloud", "mqtt://192.0.2.1", "--data", &data, "--http", "127.0.0.1:0"])?;
    assert_eq!(output.status.code(), Some(78));
    assert!(error(&output).contains("mqtts"), "{}", error(&output));
    Ok(())
}

#[test]
fn with_a_token_only_those_who_show_it_are_answered() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/access-token")?;
    let (secret, file) = ("correct-horse-battery-staple", directory.join("token"));
    files::write(&file, format!("{secret}\n"))?;
    let file = file.display().to_string();
    let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &["--token-file", &file])?;
    let api = Client::new(&cloud.http);
    let get = |token: &str| api.send("GET", "/api/models", &[("authorization", token)], &[]);
    let refused = api.get("/api/models")?;
    assert_eq!((refused.status, refused.header("content-type")), (401, "application/problem+json"));
    assert_eq!(get("Bearer another-horse-battery")?.status, 401);
    assert_eq!(get(&format!("Bearer {secret}"))?.status, 200);

    let output = cloud.edgewise(&["model", "list"])?;
    assert!(!output.status.success());
    assert!(error(&output).contains("EDGEWISE_TOKEN"), "{}", error(&output));
    cloud.text(&["model", "list", "--token", secret])?;
    let log = files::read(&directory.join("cloud/serve.log"))?;
    assert!(!log.contains(secret), "the token is in the log");
    Ok(())
}

#[test]
fn a_registry_serves_no_database_and_no_storage_of_another() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/access-owner")?;
    let path = |name: &str| directory.join(name).display().to_string();
    let (database, storage) = (format!("sqlite:{}", path("one.db")), format!("file://{}", path("objects")));
    let cloud =
        Cloud::start(&directory.join("one"), 0, 0, &["--database", &database, "--storage", &storage])?;
    cloud.register(&e2e::data::sample(Some(1)))?;
    let refuse = |data: &str, database: &str, says: &str| -> Result<(), Failure> {
        let (data, log) = (path(data), directory.join(format!("{data}.log")));
        let mut arguments =
            vec!["serve", "--data", &data, "--http", "127.0.0.1:0", "--mqtt-listen", "127.0.0.1:0"];
        arguments.extend(["--database", database, "--storage", &storage]);
        let mut refused = Process::start("edgewise", arguments, &[], &log)?;
        assert!(refused.wait(Duration::from_secs(30)).is_some_and(|code| code > 0));
        assert!(refused.log_tail().contains(says), "{}", refused.log_tail());
        Ok(())
    };
    refuse("two", &database, "another edgewise serve works on it")?;
    // A mistyped or empty database knows no version, and would delete them all.
    refuse("three", &format!("sqlite:{}", path("three.db")), "belongs to another database")?;
    let pulled = path("pulled.bundle");
    cloud.text(&["model", "pull", "power-demand:1", "-o", &pulled]).map(drop)
}

#[test]
fn silent_peers_keep_nobody_from_the_registry() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/access-silent")?;
    let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &[])?;
    let address = cloud.http.trim_start_matches("http://").to_owned();
    let memory = cloud.process.peak_memory()?;
    let mut silent = Vec::new();
    for peer in 0..900 {
        let stream =
            std::net::TcpStream::connect(&address).map_err(|error| format!("peer {peer}: {error}"))?;
        silent.push(stream);
        if peer % 300 == 299 {
            assert_eq!(Client::new(&cloud.http).get("/health")?.status, 200);
        }
    }
    cloud.text(&["device", "list"])?;
    let grown = cloud.process.peak_memory()?.saturating_sub(memory);
    assert!(grown < 64 << 20, "900 silent peers took {grown} bytes");
    Ok(())
}

#[test]
fn a_pipe_in_place_of_a_file_is_refused_at_once() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/access-pipe")?;
    let pipe = directory.join("pipe").display().to_string();
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.is_ok_and(|status| status.success()));
    let data = directory.join("data").display().to_string();
    for arguments in [&["config", "--config", &pipe][..], &["run", "--local", &pipe, "--data", &data]] {
        let log = directory.join("agent.log");
        let mut refused = Process::start("edgewise-agent", arguments, &[], &log)?;
        assert!(refused.wait(Duration::from_secs(20)).is_some_and(|code| code > 0), "{arguments:?}");
        assert!(refused.log_tail().contains("not a file"), "{}", refused.log_tail());
    }
    let arguments = ["serve", "--data", &data, "--http", "127.0.0.1:0", "--token-file", &pipe];
    let mut refused = Process::start("edgewise", arguments, &[], &directory.join("serve.log"))?;
    assert!(refused.wait(Duration::from_secs(20)).is_some_and(|code| code > 0));
    assert!(refused.log_tail().contains("not a file"), "{}", refused.log_tail());
    Ok(())
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
