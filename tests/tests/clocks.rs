//! A device whose clock is wrong, or jumps: rows keep their order and get their times, as far as these can be known.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use e2e::data::MODEL;
use e2e::files;
use e2e::process::{Failure, run_agent_with};
use e2e::remote::Remote;
use e2e::site::{DEVICE, PATIENCE};
use e2e::toxic::Toxics;
use serde_json::Value;

/// How far a time may be from when the test scored the row: the test and the batch take some of it.
const NEAR: u64 = 10_000;

/// The device's clock, as `libfaketime` shows it to the agent.
struct FakeClock {
    file: PathBuf,
    library: String,
}

#[test]
fn rows_get_their_times_however_the_clock_jumps() -> Result<(), Failure> {
    let clock = FakeClock::new("clock-jumps", &at_1970())?;
    let remote = Remote::start("clock-jumps", &clock.environment())?;
    remote.deploy(1, PATIENCE)?;
    let mut scored = vec![now_ms()];
    remote.score(0..10)?;
    remote.all_went_up(10, PATIENCE)?;

    // These wait on the disk until the clock is right.
    remote.link.set(Toxics { refuse: true, ..Toxics::default() });
    remote.link.reset();
    scored.push(now_ms());
    remote.score(10..20)?;
    std::thread::sleep(Duration::from_secs(1));
    clock.set("+0")?;
    remote.link.set(Toxics::default());
    remote.all_went_up(20, PATIENCE)?;
    for (offset, rows) in [("+0", 20..30), ("+10y", 30..40), ("-10y", 40..50)] {
        clock.set(offset)?;
        scored.push(now_ms());
        let through = rows.end;
        remote.score(rows)?;
        remote.all_went_up(through, PATIENCE)?;
    }

    let rows = exported(&remote)?;
    let sources = ["corrected", "corrected", "device", "corrected", "corrected"];
    for (tenth, (source, scored)) in sources.iter().zip(scored).enumerate() {
        for (at, row) in rows.iter().enumerate().skip(tenth * 10).take(10) {
            assert_eq!(row["request_id"], format!("row-{at}"), "out of order");
            assert_eq!(row["captured_source"], *source, "{row}");
            let captured = time_ms(&row["captured"])?;
            assert!(captured.abs_diff(scored) < NEAR, "scored at {scored}, {row}");
        }
    }
    Ok(())
}

#[test]
fn rows_of_a_run_that_ended_with_a_wrong_clock_are_marked() -> Result<(), Failure> {
    let clock = FakeClock::new("clock-past", &at_1970())?;
    let mut remote = Remote::start("clock-past", &clock.environment())?;
    remote.deploy(1, PATIENCE)?;
    remote.link.set(Toxics { refuse: true, ..Toxics::default() });
    remote.link.reset();
    remote.score(0..10)?;
    clock.set("+0")?;
    remote.restart_agent(&clock.environment())?;
    remote.link.set(Toxics::default());
    remote.score(10..20)?;
    remote.all_went_up(20, PATIENCE)?;
    for (at, row) in exported(&remote)?.iter().enumerate() {
        assert_eq!(row["request_id"], format!("row-{at}"), "out of order");
        let (sure, source) = if at < 10 { (false, "receipt") } else { (true, "device") };
        assert_eq!((&row["wall_sure"], &row["captured_source"]), (&sure.into(), &source.into()), "{row}");
    }
    Ok(())
}

#[test]
fn the_doctor_sees_a_clock_at_1970() -> Result<(), Failure> {
    let clock = FakeClock::new("clock-doctor", &at_1970())?;
    let data = e2e::fresh_directory("e2e/clock-doctor/agent")?.display().to_string();
    let output = run_agent_with(&["doctor", "--data", &data, "--device", DEVICE], &clock.environment())?;
    let page = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{page}");
    assert!(page.contains("PROBLEM") && page.contains("1970"), "{page}");
    Ok(())
}

impl FakeClock {
    fn new(name: &str, offset: &str) -> Result<Self, Failure> {
        let arch = std::env::consts::ARCH;
        let library = PathBuf::from(format!("/usr/lib/{arch}-linux-gnu/faketime/libfaketimeMT.so.1"));
        if !library.exists() {
            return Err(format!("there is no {}; install it: apt-get install faketime", library.display()));
        }
        let file = e2e::fresh_directory(&format!("e2e/{name}-clock"))?.join("offset");
        let clock = Self { file, library: library.display().to_string() };
        clock.set(offset)?;
        Ok(clock)
    }

    /// Lets the clock jump.
    fn set(&self, offset: &str) -> Result<(), Failure> {
        // By a rename, so that the agent never reads half of it.
        let new = self.file.with_extension("new");
        files::write(&new, format!("{offset}\n"))?;
        std::fs::rename(&new, &self.file).map_err(|error| format!("setting the clock: {error}"))
    }

    fn environment(&self) -> [(&str, &str); 4] {
        [
            ("LD_PRELOAD", &self.library),
            ("FAKETIME_TIMESTAMP_FILE", self.file.to_str().unwrap_or_default()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    }
}

/// Five minutes after the beginning of 1970.
fn at_1970() -> String {
    format!("-{}", now_ms() / 1000 - 300)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What is exported, in the order in which it was captured.
fn exported(remote: &Remote) -> Result<Vec<Value>, Failure> {
    let output = remote.directory.join("times");
    let path = output.display().to_string();
    remote.cloud.text(&["data", "export", "--model", MODEL, "--format", "jsonl", "-o", &path])?;
    let mut rows = Vec::new();
    for file in files::below(Path::new(&output))? {
        for line in files::read(&file)?.lines() {
            rows.push(serde_json::from_str::<Value>(line).map_err(|error| format!("{error}: {line}"))?);
        }
    }
    rows.sort_by_key(|row| row["sequence"].as_u64());
    Ok(rows)
}

fn time_ms(text: &Value) -> Result<u64, Failure> {
    let text = text.as_str().unwrap_or_default();
    let at: jiff::civil::DateTime = text.parse().map_err(|error| format!("{text}: {error}"))?;
    let at = at.to_zoned(jiff::tz::TimeZone::UTC).map_err(|error| error.to_string())?;
    u64::try_from(at.timestamp().as_millisecond()).map_err(|error| error.to_string())
}
