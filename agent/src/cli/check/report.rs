//! What `check` found, for people and as JSON.

use std::fmt;
use std::path::Path;

use cloud_sync::bundle::{Accelerator, Bundle};
use engine::golden::GoldenReport;
use engine::profile::Profile;
use engine::{Loaded, Provider, Signature};
use serde::Serialize;

use super::Proof;
use crate::cli::table::table;

/// The whole of it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    bundle: String,
    digest: String,
    inputs: Vec<String>,
    outputs: Vec<String>,
    needs_gpu: bool,
    golden_samples: usize,
    rtol: f64,
    atol: f64,
    engines: Vec<Verdict>,
    not_here: Vec<Missing>,
    agreements: Vec<Agreement>,
}

/// How the bundle fared on one engine and provider.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    pub(super) provider: &'static str,
    pub(super) engine: Option<String>,
    pub(super) passed: bool,
    /// Why it did not pass, or what else is to be known.
    pub(super) why: Option<String>,
    /// Growth of this process's memory over the load.
    pub(super) memory_bytes: Option<u64>,
    /// Largest difference from the golden samples.
    pub(super) largest_difference: Option<f64>,
    pub(super) latency: Option<Latency>,
}

/// Of one score, in microseconds.
#[derive(Debug, Serialize)]
pub(super) struct Latency {
    scores: usize,
    p50_us: f64,
    p90_us: f64,
    p95_us: f64,
    p99_us: f64,
    scores_per_second: f64,
}

/// A provider that can't be had on this device.
#[derive(Debug, Serialize)]
pub(super) struct Missing {
    pub(super) provider: &'static str,
    pub(super) why: String,
}

/// Whether two providers give the same.
#[derive(Debug, Serialize)]
pub(super) struct Agreement {
    providers: [&'static str; 2],
    agree: bool,
    largest_difference: Option<f64>,
    why: Option<String>,
}

impl Report {
    pub(super) fn new(
        path: &Path,
        bundle: &Bundle,
        proof: &Proof,
        signature: &Signature,
        engines: Vec<Verdict>,
        not_here: Vec<Missing>,
        agreements: Vec<Agreement>,
    ) -> Self {
        Self {
            bundle: path.display().to_string(),
            digest: bundle.digest().to_string(),
            inputs: signature.inputs.iter().map(ToString::to_string).collect(),
            outputs: signature.outputs.iter().map(ToString::to_string).collect(),
            needs_gpu: bundle.description().resources.accelerator == Accelerator::Gpu,
            golden_samples: proof.golden.as_ref().map_or(0, |golden| golden.samples.len()),
            rtol: proof.rtol,
            atol: proof.atol,
            engines,
            not_here,
            agreements,
        }
    }

    /// Whether the bundle passed, or in one line why not.
    pub(super) fn result(&self) -> Result<(), String> {
        if let Some(apart) = self.agreements.iter().find(|agreement| !agreement.agree) {
            let [first, second] = apart.providers;
            return Err(format!("{first} and {second} give different outputs"));
        }
        if self.engines.iter().any(|verdict| verdict.passed) {
            return Ok(());
        }
        Err("no engine here runs it right".to_owned())
    }

    fn facts(&self) -> Vec<Vec<String>> {
        let mut facts = vec![
            ["bundle".to_owned(), self.bundle.clone()],
            ["digest".to_owned(), self.digest.clone()],
            ["inputs".to_owned(), self.inputs.join("; ")],
            ["outputs".to_owned(), self.outputs.join("; ")],
        ];
        if self.needs_gpu {
            facts.push(["needs".to_owned(), "a GPU: a device without one refuses it".to_owned()]);
        }
        let golden = match self.golden_samples {
            0 => {
                "none: what is right is not known; timed and compared on zeros, free dimensions 1".to_owned()
            }
            samples => {
                format!("{samples} samples, rtol {}, atol {}; timed on sample 0", self.rtol, self.atol)
            }
        };
        facts.push(["golden".to_owned(), golden]);
        let agreements =
            self.agreements.iter().map(|agreement| ["agreement".to_owned(), agreement.to_string()]);
        facts.extend(agreements);
        facts.into_iter().map(Vec::from).collect()
    }

    /// One line for each reason: without a library all of its providers are missing for the same.
    fn missing(&self) -> Vec<String> {
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for missing in &self.not_here {
            match reasons.iter_mut().find(|(why, _)| *why == missing.why) {
                Some((_, providers)) => providers.push(missing.provider),
                None => reasons.push((&missing.why, vec![missing.provider])),
            }
        }
        reasons.iter().map(|(why, providers)| format!("not here: {}: {why}", providers.join(", "))).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["PROVIDER", "ENGINE", "VERDICT", "MEMORY", "P50", "P90", "P95", "P99", "SCORES/S"];
        let mut rows = vec![heads.map(str::to_owned).to_vec()];
        rows.extend(self.engines.iter().map(Verdict::row));
        writeln!(f, "{}", table(&self.facts()))?;
        f.write_str(&table(&rows))?;
        for verdict in &self.engines {
            if let Some(why) = &verdict.why {
                writeln!(f, "{}: {why}", verdict.provider)?;
            }
        }
        self.missing().iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Verdict {
    pub(super) fn not_loaded(provider: Provider, why: String) -> Self {
        Self {
            provider: provider.name(),
            engine: None,
            passed: false,
            why: Some(why),
            memory_bytes: None,
            largest_difference: None,
            latency: None,
        }
    }

    pub(super) fn loaded(loaded: &Loaded) -> Self {
        Self {
            provider: loaded.provider.name(),
            engine: Some(format!("{} {}", loaded.engine, loaded.engine_version)),
            passed: true,
            why: loaded.why.clone(),
            memory_bytes: Some(loaded.memory_bytes),
            largest_difference: None,
            latency: None,
        }
    }

    fn row(&self) -> Vec<String> {
        let none = || "-".to_owned();
        let mut row = vec![
            self.provider.to_owned(),
            self.engine.clone().unwrap_or_else(none),
            if self.passed { "passed" } else { "failed" }.to_owned(),
            self.memory_bytes
                .map_or_else(none, |bytes| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))),
        ];
        match &self.latency {
            Some(latency) => {
                row.extend([latency.p50_us, latency.p90_us, latency.p95_us, latency.p99_us].map(duration));
                row.push(format!("{:.0}", latency.scores_per_second));
            }
            None => row.extend(std::iter::repeat_with(none).take(5)),
        }
        row
    }
}

impl Agreement {
    pub(super) fn new(first: Provider, second: Provider, result: Result<GoldenReport, String>) -> Self {
        let providers = [first.name(), second.name()];
        match result {
            Ok(report) => {
                let largest_difference = Some(report.largest_difference);
                Self { providers, agree: true, largest_difference, why: None }
            }
            Err(why) => Self { providers, agree: false, largest_difference: None, why: Some(why) },
        }
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second] = self.providers;
        match (&self.why, self.largest_difference) {
            (Some(why), _) => write!(f, "{first} and {second} differ: {why}"),
            (None, difference) => {
                write!(f, "{first} and {second} agree; largest difference {:.1e}", difference.unwrap_or(0.0))
            }
        }
    }
}

impl From<Profile> for Latency {
    fn from(profile: Profile) -> Self {
        Self {
            scores: profile.runs,
            p50_us: profile.p50,
            p90_us: profile.p90,
            p95_us: profile.p95,
            p99_us: profile.p99,
            scores_per_second: profile.throughput,
        }
    }
}

fn duration(microseconds: f64) -> String {
    match microseconds {
        us if us < 1e3 => format!("{us:.1} µs"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}
