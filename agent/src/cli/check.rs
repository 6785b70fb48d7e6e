//! `check`: a bundle on every engine that is here, before anyone deploys it.
//!
//! It passes if at least one engine runs it right and all that run it agree. An engine runs it right if it loads it
//! and gives what the golden samples say. Without golden samples a score of zeros is timed, and says nothing about
//! what is right.

mod report;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use cloud_sync::bundle::Bundle;
use engine::golden::{self, Golden, Sample};
use engine::{Availability, Loaded, Model, Provider, ScoreError, Signature, Tensors, profile};

use super::{EngineArguments, json, print, read_onnx};
use crate::error::Error;
use report::{Agreement, Latency, Missing, Report, Verdict};

/// How long each engine is timed: several thousand scores of an ordinary sensor model.
const BUDGET: Duration = Duration::from_secs(1);

/// What engines are held to that have no golden samples to pass; as for bundles that name no tolerance.
const DEFAULT_TOLERANCE: (f64, f64) = (1e-3, 1e-4);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A directory with a model.toml, a .onnx file or a .bundle file
    bundle: PathBuf,
    /// Checks on this one only [default: all that are here]
    #[arg(long, value_name = "PROVIDER")]
    provider: Option<Provider>,
    #[command(flatten)]
    engine: EngineArguments,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn check(arguments: &Arguments) -> Result<(), Error> {
    let bundle = Bundle::open(&arguments.bundle)?;
    let onnx = read_onnx(&bundle)?;
    let proof = Proof::of(&bundle)?;
    let (providers, not_here) = providers(arguments);
    let mut signature = Signature::default();
    let mut verdicts = Vec::new();
    let mut passed = Vec::new();
    for provider in providers {
        let mut loaded = match engine::load(&onnx, &arguments.engine.load_options(provider)) {
            Ok(loaded) => loaded,
            Err(error) => {
                verdicts.push(Verdict::not_loaded(provider, error.to_string()));
                continue;
            }
        };
        signature = loaded.model.signature().clone();
        let verdict = proof.verdict(&mut loaded);
        // Those that passed stay loaded: memory that they gave back would be used again and not be measured.
        if verdict.passed {
            passed.push(loaded);
        }
        verdicts.push(verdict);
    }
    let agreements = proof.agreements(&mut passed);
    let report = Report::new(&arguments.bundle, &bundle, &proof, &signature, verdicts, not_here, agreements);
    print(&if arguments.json { json(&report)? } else { report.to_string() })?;
    report.result().map_err(Error::Check)
}

/// What a model is held to.
struct Proof {
    golden: Option<Golden>,
    rtol: f64,
    atol: f64,
}

impl Proof {
    fn of(bundle: &Bundle) -> Result<Self, Error> {
        let description = bundle.description();
        let golden = description.golden()?.map(|path| bundle.read(&path)).transpose()?;
        let golden = golden.map(|bytes| golden::parse(&bytes)).transpose()?;
        let section = description.golden.as_ref();
        let (rtol, atol) = section.map_or(DEFAULT_TOLERANCE, |section| (section.rtol, section.atol));
        Ok(Self { golden, rtol, atol })
    }

    /// Inputs to time a model on, and to compare engines on where there are no golden samples.
    fn inputs(&self, signature: &Signature) -> Result<Tensors, String> {
        let sample = self.golden.as_ref().and_then(|golden| golden.samples.first());
        sample.map_or_else(|| zeros(signature), |sample| Ok(sample.inputs.clone()))
    }

    fn verdict(&self, loaded: &mut Loaded) -> Verdict {
        let inputs = self.inputs(loaded.model.signature());
        let mut verdict = Verdict::loaded(loaded);
        if let Some(golden) = &self.golden {
            match golden::check(loaded.model.as_mut(), golden, self.rtol, self.atol) {
                Ok(report) => verdict.largest_difference = Some(report.largest_difference),
                Err(error) => return Verdict { passed: false, why: Some(error.to_string()), ..verdict },
            }
        }
        let timed = inputs.and_then(|inputs| {
            profile::latency(loaded.model.as_mut(), &inputs, BUDGET).map_err(|error| error.to_string())
        });
        match timed {
            Ok(profile) => verdict.latency = Some(Latency::from(profile)),
            // Inputs that are made up may be none that the model can score: no fault of the model.
            Err(why) => verdict.why = Some(format!("not timed: {why}")),
        }
        verdict
    }

    /// The first model's outputs against those of each other one.
    fn agreements(&self, models: &mut [Loaded]) -> Vec<Agreement> {
        let Some((first, others)) = models.split_first_mut() else { return Vec::new() };
        let expected = self.outputs(first.model.as_mut());
        let compare = |other: &mut Loaded| {
            // Each may be off by one tolerance, and in opposite directions.
            let (rtol, atol) = (2.0 * self.rtol, 2.0 * self.atol);
            let result = expected.clone().and_then(|expected| {
                let compared = golden::check(other.model.as_mut(), &expected, rtol, atol);
                compared.map_err(|error| error.to_string())
            });
            Agreement::new(first.provider, other.provider, result)
        };
        others.iter_mut().map(compare).collect()
    }

    /// What a model gives for every golden sample, else for zeros.
    fn outputs(&self, model: &mut dyn Model) -> Result<Golden, String> {
        let inputs = match &self.golden {
            Some(golden) => golden.samples.iter().map(|sample| sample.inputs.clone()).collect(),
            None => vec![zeros(model.signature())?],
        };
        let score = |inputs: Tensors| Ok(Sample { outputs: model.score(&inputs)?, inputs });
        let samples: Result<_, ScoreError> = inputs.into_iter().map(score).collect();
        Ok(Golden { samples: samples.map_err(|error| error.to_string())? })
    }
}

/// The providers to check on, and those that can't be had here.
fn providers(arguments: &Arguments) -> (Vec<Provider>, Vec<Missing>) {
    if let Some(provider) = arguments.provider {
        return (vec![provider], Vec::new());
    }
    let (mut here, mut missing) = (Vec::new(), Vec::new());
    for Availability { provider, version, .. } in
        engine::available(&arguments.engine.load_options(Provider::Auto))
    {
        match version {
            Ok(_) => here.push(provider),
            Err(why) => missing.push(Missing { provider: provider.name(), why }),
        }
    }
    (here, missing)
}

fn zeros(signature: &Signature) -> Result<Tensors, String> {
    signature.zeros().ok_or_else(|| "an input is too large to be made up".to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn sample() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../modules/samples/power-demand/2")
    }

    fn on_tract(bundle: PathBuf) -> Result<(), Error> {
        let engine = EngineArguments { onnxruntime: None, threads: 0 };
        check(&Arguments { bundle, provider: Some(Provider::Tract), engine, json: true })
    }

    #[test]
    fn a_bundle_passes_and_one_with_other_expectations_does_not() {
        on_tract(sample()).unwrap();

        let wrong = tempfile::tempdir().unwrap();
        for file in ["model.toml", "model.onnx", "labels.txt"] {
            std::fs::copy(sample().join(file), wrong.path().join(file)).unwrap();
        }
        let golden = std::fs::read(sample().join("golden.json")).unwrap();
        let mut golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
        golden["samples"][5]["outputs"][0]["data"][0] = 0.5.into();
        std::fs::write(wrong.path().join("golden.json"), golden.to_string()).unwrap();
        let error = on_tract(wrong.path().to_owned()).unwrap_err();
        assert!(matches!(error, Error::Check(_)), "{error}");
        assert_eq!(error.exit_code(), 65);
    }
}
