//! The proof that a bundle can be scored, before it gets a version: it loads on the engines here, and gives the
//! outputs of its golden samples.
//!
//! One engine that does both is enough, since devices differ in what they have; what every other engine made of the
//! model stands in the record. A bundle that no engine proves is refused in the words of the engine that came furthest.

use cloud_sync::bundle::Bundle;
use engine::golden::{self, Golden};
use engine::{Availability, LoadOptions, Signature, TensorSpec};

use crate::api::{EngineRecord, SignatureRecord, TensorRecord};
use crate::error::RegistryError;

/// What was proved.
#[derive(Debug, Clone, PartialEq)]
pub struct Proof {
    /// What the model takes and gives.
    pub signature: SignatureRecord,
    /// What each engine made of it.
    pub engines: Vec<EngineRecord>,
}

/// Loads and checks the bundle's model. Blocking, and as slow as the model.
pub fn prove(bundle: &Bundle, options: &LoadOptions) -> Result<Proof, RegistryError> {
    let description = bundle.description();
    let onnx = bundle.read(&description.onnx()?)?;
    let samples = match (description.golden()?, &description.golden) {
        (Some(path), Some(tolerance)) => {
            let samples = golden::parse(&bundle.read(&path)?).map_err(refused)?;
            Some((samples, tolerance.rtol, tolerance.atol))
        }
        _ => None,
    };
    let mut signature = None;
    let mut engines = Vec::new();
    let mut refusals = Vec::new();
    for Availability { provider, version, .. } in engine::available(options) {
        // Only processors: a registry's GPU says nothing about a device's.
        let is_processor = matches!(provider, engine::Provider::Tract | engine::Provider::Cpu);
        let Some(version) = version.ok().filter(|_| is_processor) else { continue };
        let outcome = try_engine(&onnx, samples.as_ref(), &LoadOptions { provider, ..options.clone() });
        let name = match provider {
            engine::Provider::Tract => format!("tract {version}"),
            _ => format!("onnxruntime {version}"),
        };
        let golden_samples = samples.as_ref().map_or(0, |(samples, ..)| samples.samples.len() as u64);
        let mut record = EngineRecord { engine: name, verified: false, golden_samples, why: None };
        match outcome {
            Ok(proved) => {
                signature.get_or_insert(proved);
                record.verified = true;
            }
            Err((loaded, why)) => {
                refusals.push((loaded, format!("{}: {why}", record.engine)));
                record.golden_samples = 0;
                record.why = Some(why);
            }
        }
        engines.push(record);
    }
    match (signature, refusals.into_iter().max_by_key(|(loaded, _)| *loaded)) {
        (Some(signature), _) => Ok(Proof { signature: record_of(&signature), engines }),
        (None, Some((_, why))) => Err(RegistryError::Refused(why)),
        (None, None) => Err(RegistryError::Internal("no engine is here to prove a model with".to_owned())),
    }
}

/// What one engine makes of a model; on refusal whether it got as far as loading, and why.
fn try_engine(
    onnx: &[u8],
    samples: Option<&(Golden, f64, f64)>,
    options: &LoadOptions,
) -> Result<Signature, (bool, String)> {
    let mut loaded = engine::load(onnx, options).map_err(|error| (false, error.to_string()))?;
    if let Some((samples, rtol, atol)) = samples {
        golden::check(loaded.model.as_mut(), samples, *rtol, *atol)
            .map_err(|error| (true, error.to_string()))?;
    }
    Ok(loaded.model.signature().clone())
}

fn record_of(signature: &Signature) -> SignatureRecord {
    let tensors = |specs: &[TensorSpec]| specs.iter().map(tensor_record).collect();
    SignatureRecord { inputs: tensors(&signature.inputs), outputs: tensors(&signature.outputs) }
}

fn tensor_record(spec: &TensorSpec) -> TensorRecord {
    TensorRecord {
        name: spec.name.clone(),
        datatype: spec.data_type.oip_name().to_owned(),
        shape: spec
            .shape
            .iter()
            .map(|length| length.and_then(|l| i64::try_from(l).ok()).unwrap_or(-1))
            .collect(),
    }
}

fn refused(error: impl std::fmt::Display) -> RegistryError {
    RegistryError::Refused(error.to_string())
}
