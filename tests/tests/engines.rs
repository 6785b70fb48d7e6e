//! Which engine runs a model, and that it is said honestly.

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::client::Client;
use e2e::data::{self, MODEL};
use e2e::process::{Agent, Failure, Process, program, run_agent};
use serde_json::{Value, json};

#[test]
fn the_agent_reports_what_really_runs_a_model() -> Result<(), Failure> {
    let library = e2e::onnxruntime()?.display().to_string();
    let directory = e2e::fresh_directory("e2e/engines")?;
    let bundle = data::sample(Some(2));
    for (name, more, engine, provider) in [
        ("without", &[][..], "tract", "tract"),
        ("with", &["--onnxruntime", &library], "onnxruntime", "cpu"),
        ("named", &["--onnxruntime", &library, "--provider", "tract"], "tract", "tract"),
    ] {
        let agent = Agent::start_local(&directory.join(name), &bundle, more)?;
        let metrics = Client::new(&agent.http).get("/metrics")?.text;
        let info = metrics.lines().find(|line| line.starts_with("edgewise_model_info{")).unwrap_or_default();
        let runs = info.to_lowercase().replace(' ', "");
        assert!(runs.contains(&format!("engine=\"{engine}")), "{name}: {info}");
        assert!(runs.contains(&format!("provider=\"{provider}\"")), "{name}: {info}");
        assert!(info.contains(MODEL), "{name}: {info}");
    }
    Ok(())
}

#[test]
fn nothing_is_noted_for_the_maker_of_the_library() -> Result<(), Failure> {
    let library = e2e::onnxruntime()?.display().to_string();
    let directory = e2e::fresh_directory("e2e/engines-silent")?;
    let home = directory.join("home");
    std::fs::create_dir(&home).map_err(|error| error.to_string())?;
    let (path, bundle) = (directory.display().to_string(), data::sample(Some(2)).display().to_string());
    let arguments =
        ["run", "--local", &bundle, "--data", &path, "--http", "127.0.0.1:0", "--provider", "cpu"];
    let environment = [
        ("HOME", home.display().to_string()),
        ("XDG_CACHE_HOME", home.display().to_string()),
        ("EDGEWISE_ENGINE_ONNXRUNTIME", library),
    ];
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let process = Process::start("edgewise-agent", arguments, &environment, &directory.join("agent.log"))?;
    let mut agent = Agent::ready(process)?;
    let answer = Client::new(&agent.http).post("/score", &json!({ "data": [vec![0.0; 24]] }))?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    agent.process.terminate()?;
    let left = std::fs::read_dir(&home).map_err(|error| error.to_string())?.count();
    assert_eq!(left, 0, "{} is not empty", home.display());
    Ok(())
}

#[test]
fn a_provider_that_cannot_be_had_is_an_error_and_no_other_one() -> Result<(), Failure> {
    let library = e2e::onnxruntime()?.display().to_string();
    let data = e2e::fresh_directory("e2e/engines-refused")?.display().to_string();
    let bundle = data::sample(Some(2)).display().to_string();
    let run = ["run", "--local", &bundle, "--data", &data, "--http", "127.0.0.1:0"];
    for (more, code, says) in [
        (&["--provider", "cpu"][..], 1, "ONNX Runtime"),
        (&["--provider", "cuda", "--onnxruntime", &library], 1, "cuda"),
        (&["--onnxruntime", "/nowhere/libonnxruntime.so"], 78, "/nowhere/libonnxruntime.so"),
    ] {
        let output = run_agent(&[&run, more].concat())?;
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{more:?}: {line}");
        assert!(line.contains(says), "{more:?}: {line}");
    }
    Ok(())
}

#[test]
fn both_engines_agree_on_the_samples() -> Result<(), Failure> {
    let library = e2e::onnxruntime()?.display().to_string();
    for version in [1, 2] {
        let bundle = data::sample(Some(version)).display().to_string();
        let output = run_agent(&["check", &bundle, "--onnxruntime", &library, "--json"])?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        let agreements = report["agreements"].as_array().cloned().unwrap_or_default();
        assert!(!agreements.is_empty() && agreements.iter().all(|a| a["agree"] == true), "{report:#}");
    }
    Ok(())
}

#[test]
fn a_package_finds_its_library() -> Result<(), Failure> {
    let package = Package::install("e2e/engines-package")?;
    let report = package.check(&e2e::onnxruntime()?)?;
    let ran = report["engines"].as_array().cloned().unwrap_or_default();
    assert!(ran.iter().any(|engine| engine["provider"] == "cpu" && engine["passed"] == true), "{report:#}");
    Ok(())
}

#[test]
fn a_library_that_crashes_while_it_is_loaded_is_reported_and_tract_serves() -> Result<(), Failure> {
    let package = Package::install("e2e/engines-crash")?;
    let null = "static volatile int *volatile nowhere; ";
    for (name, source, says) in [
        (
            "constructor",
            format!("{null} __attribute__((constructor)) static void start(void) {{ *nowhere = 1; }}"),
            "it crashes while it is loaded (signal: 11 (SIGSEGV)",
        ),
        (
            "exit",
            "#include <stdlib.h>\n__attribute__((constructor)) static void start(void) { exit(0); }".into(),
            "it ends the process that loads it (exit status: 0)",
        ),
        (
            "entry",
            format!("{null} const void *OrtGetApiBase(void) {{ *nowhere = 1; return 0; }}"),
            "it crashes while it is loaded (signal: 11 (SIGSEGV)",
        ),
    ] {
        let library = package.directory.join(format!("{name}.so"));
        compile(&source, &library)?;
        let report = package.check(&library)?;
        let missing = report["not_here"].to_string();
        assert!(missing.contains(says) && missing.contains(r#""cpu""#), "{name}: {report:#}");
    }
    // The last of them is still in its place.
    let (bundle, data) = (data::sample(Some(2)), package.directory.join("data"));
    let (bundle, data) = (bundle.display().to_string(), data.display().to_string());
    let arguments = ["run", "--local", &bundle, "--data", &data, "--http", "127.0.0.1:0"];
    let log = package.directory.join("agent.log");
    let mut process = Process::start_program(&package.agent, "edgewise-agent", arguments, &[], &log)?;
    let ready = process.wait_for_line("ready")?;
    let http = ready.split_whitespace().find_map(|word| word.strip_prefix("http=")).unwrap_or_default();
    let metrics = Client::new(http).get("/metrics")?.text;
    let info = metrics.lines().find(|line| line.starts_with("edgewise_model_info{")).unwrap_or_default();
    assert!(info.contains("provider=\"tract\""), "{info}");
    assert!(process.log_tail().contains("it crashes while it is loaded"), "{}", process.log_tail());
    Ok(())
}

/// The agent as its packages install it: `bin/edgewise-agent`, and the library in `lib/edgewise`.
struct Package {
    directory: PathBuf,
    agent: PathBuf,
}

impl Package {
    fn install(name: &str) -> Result<Package, Failure> {
        let directory = e2e::fresh_directory(name)?;
        let agent = directory.join("bin/edgewise-agent");
        let made = ["bin", "lib/edgewise"].map(|part| std::fs::create_dir_all(directory.join(part)));
        let linked = std::fs::hard_link(program("edgewise-agent"), &agent);
        for result in made.into_iter().chain([linked]) {
            result.map_err(|error| format!("installing into {}: {error}", directory.display()))?;
        }
        Ok(Package { directory, agent })
    }

    /// Puts `library` in its place; gives what `check` says of the sample then.
    fn check(&self, library: &Path) -> Result<Value, Failure> {
        let place = self.directory.join("lib/edgewise/libonnxruntime.so");
        let failed = |error: std::io::Error| format!("{}: {error}", library.display());
        if place.is_symlink() {
            std::fs::remove_file(&place).map_err(failed)?;
        }
        std::os::unix::fs::symlink(library, &place).map_err(failed)?;
        let mut check = Command::new(&self.agent);
        check.arg("check").arg(data::sample(Some(2))).arg("--json").env_remove("ORT_DYLIB_PATH");
        let output = check.output().map_err(failed)?;
        serde_json::from_slice(&output.stdout).map_err(|error| {
            format!("{error}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr))
        })
    }
}

fn compile(source: &str, library: &Path) -> Result<(), Failure> {
    let file = library.with_extension("c");
    std::fs::write(&file, source).map_err(|error| format!("{}: {error}", file.display()))?;
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(library).arg(&file).status();
    match compiled {
        Ok(status) if status.success() => Ok(()),
        failed => Err(format!("cc {}: {failed:?}", file.display())),
    }
}
