//! Scoring with tract.
//!
//! tract compiles a graph for the shapes of its inputs. Where they are all fixed that happens once, at load. Where some
//! are free, one plan with symbols for lengths serves every shape, if tract can compile it; else each set of shapes
//! gets a plan of its own, compiled when it first comes.
//!
//! Invariants: an operator that tract does not have, or would get wrong, is refused at load, not at the first score;
//! there are at most [`PLANS`] plans; every call into tract is contained, since it asserts on what a file says.

use std::collections::HashSet;
use std::sync::Arc;

use prost::Message;
use tract_onnx::model::Onnx;
use tract_onnx::pb::ModelProto;
use tract_onnx::prelude as tract;
use tract_onnx::prelude::{Datum, DatumType, InferenceModelExt, IntoRunnable};

use super::distrust;
use crate::contain::contained;
use crate::load::{Engine, LoadError, Loaded, Provider, brief};
use crate::model::{Model, ScoreError};
use crate::onnx::OnnxFile;
use crate::signature::Signature;
use crate::tensor::{Data, DataType, Element, Tensor, Tensors, elements};

/// tract's version, pinned in the workspace's Cargo.toml; a test compares the two.
const VERSION: &str = "0.23.9";

/// Plans kept for different shapes: each can hold its own arrangement of the weights, so their number bounds the
/// memory; a client that alternates between more shapes pays for compiling them again.
const PLANS: usize = 8;

/// Lengths tried for free dimensions to prove at load that the graph compiles: one, and one that is large enough for
/// the strides of a convolutional network.
const PROBES: [usize; 2] = [1, 64];

/// Elements of an input that is only tried: compiling may compute tensors of its size.
const LARGEST_PROBE: usize = 1 << 24;

/// The newest operator set that this version of tract was put through the standard's own tests with (package onnx
/// 1.20, opsets 1 to 25): 1024 of 1559 passed, 532 were refused, and on the 3 that differed ONNX Runtime gave what tract
/// did. What a later opset means, tract can't know.
const NEWEST_OPSET: i64 = 25;

/// Domains whose operators tract looks up; it ignores the domain itself.
const DOMAINS: [&str; 3] = ["ai.onnx", "ai.onnx.ml", "com.microsoft"];

type Plan = Arc<tract::TypedRunnableModel>;
type Shapes = Vec<Vec<usize>>;

/// Loads a model on tract.
pub(crate) fn load(file: OnnxFile<'_>) -> Result<Loaded, LoadError> {
    Ok(Loaded {
        model: Box::new(TractModel::load(file)?),
        engine: Engine::Tract,
        engine_version: VERSION.to_owned(),
        provider: Provider::Tract,
        why: None,
        memory_bytes: 0,
    })
}

/// The version of tract that is built in.
pub(crate) fn version() -> Result<String, String> {
    Ok(VERSION.to_owned())
}

/// A model that tract runs.
struct TractModel {
    signature: Signature,
    plans: Plans,
}

enum Plans {
    /// One plan serves every score.
    One(Plan),
    /// One plan per set of input shapes, the most recently used last.
    PerShapes { graph: tract::InferenceModel, compiled: Vec<(Shapes, Plan)> },
}

impl TractModel {
    /// Compiles a file, or says what tract can't do with it.
    fn load(file: OnnxFile<'_>) -> Result<TractModel, LoadError> {
        // What a file says about shapes inside the graph and of its outputs would bind lengths that its inputs leave
        // free; tract finds them out by itself.
        let onnx = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
        refuse_unsupported(&file, &onnx)?;
        let proto = ModelProto::decode(&*file.bytes);
        let mut proto = proto.map_err(|error| LoadError::Corrupt { why: error.to_string() })?;
        let signature = file.signature;
        name_nodes_apart(&mut proto);
        let graph = contained(|| -> tract::TractResult<tract::InferenceModel> {
            let parsed = onnx.parse(&proto, None)?;
            match parsed.unresolved_inputs.as_slice() {
                [] => Ok(parsed.model),
                missing => Err(tract::TractError::msg(format!("nothing computes {}", missing.join(", ")))),
            }
        });
        // The graph has weights of its own: a second copy need not wait for the plans.
        drop(proto);
        let graph = in_words(graph).map_err(|why| LoadError::refused(Engine::Tract, why))?;
        let plans = Plans::prove(graph, &signature).map_err(|why| LoadError::refused(Engine::Tract, why))?;
        Ok(TractModel { signature, plans })
    }
}

impl Model for TractModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn score(&mut self, inputs: &Tensors) -> Result<Tensors, ScoreError> {
        self.signature.check(inputs)?;
        let failed = |why: String| ScoreError::Engine { engine: Engine::Tract, why };
        let given: Vec<&Tensor> =
            self.signature.inputs.iter().filter_map(|spec| inputs.get(&spec.name)).collect();
        let plan = self.plans.of(&given).map_err(failed)?;
        let outputs = contained(|| {
            let values =
                given.iter().map(|tensor| Ok(to_tract(tensor)?.into())).collect::<tract::TractResult<_>>()?;
            plan.run(values)
        });
        let outputs = in_words(outputs).map_err(failed)?;
        if outputs.len() != self.signature.outputs.len() {
            return Err(failed(format!(
                "{} outputs came instead of {}",
                outputs.len(),
                self.signature.outputs.len()
            )));
        }
        let named = self.signature.outputs.iter().zip(&outputs).map(|(spec, value)| {
            let tensor = from_tract(value, spec.data_type);
            Ok((
                spec.name.clone(),
                tensor.map_err(|error| failed(format!("output `{}`: {error:#}", spec.name)))?,
            ))
        });
        named.collect()
    }
}

impl Plans {
    /// Plans of a graph that is proved to compile.
    fn prove(graph: tract::InferenceModel, signature: &Signature) -> Result<Plans, String> {
        let fixed: Option<Shapes> = signature
            .inputs
            .iter()
            .map(|spec| spec.shape.iter().copied().collect::<Option<Vec<usize>>>())
            .collect();
        if let Some(shapes) = fixed {
            return Ok(Plans::One(compile(graph, &shapes)?));
        }
        if let Ok(plan) = compile_symbolic(graph.clone()) {
            return Ok(Plans::One(plan));
        }
        let probed = |length: usize| -> Shapes {
            signature
                .inputs
                .iter()
                .map(|spec| spec.shape.iter().map(|l| l.unwrap_or(length)).collect())
                .collect()
        };
        let mut refusal = String::from("its inputs are too large to try");
        for shapes in PROBES.map(probed) {
            if !shapes.iter().all(|shape| elements(shape).is_ok_and(|count| count <= LARGEST_PROBE)) {
                continue;
            }
            match compile(graph.clone(), &shapes) {
                Ok(_) => return Ok(Plans::PerShapes { graph, compiled: Vec::new() }),
                Err(why) => refusal = why,
            }
        }
        Err(refusal)
    }

    /// The plan for these inputs.
    fn of(&mut self, inputs: &[&Tensor]) -> Result<Plan, String> {
        let (graph, compiled) = match self {
            Plans::One(plan) => return Ok(Arc::clone(plan)),
            Plans::PerShapes { graph, compiled } => (graph, compiled),
        };
        let fits =
            |shapes: &Shapes| shapes.iter().map(Vec::as_slice).eq(inputs.iter().map(|tensor| tensor.shape()));
        let found = compiled.iter().position(|(shapes, _)| fits(shapes));
        let entry = match found {
            Some(position) => compiled.remove(position),
            None => {
                let shapes: Shapes = inputs.iter().map(|tensor| tensor.shape().to_vec()).collect();
                let plan = compile(graph.clone(), &shapes)?;
                (shapes, plan)
            }
        };
        let plan = Arc::clone(&entry.1);
        if compiled.len() >= PLANS {
            compiled.remove(0);
        }
        compiled.push(entry);
        Ok(plan)
    }
}

fn compile(mut graph: tract::InferenceModel, shapes: &Shapes) -> Result<Plan, String> {
    in_words(contained(move || {
        for (input, shape) in shapes.iter().enumerate() {
            let data_type = graph.input_fact(input)?.datum_type;
            let mut fact = tract::InferenceFact::default().with_shape(shape);
            fact.datum_type = data_type;
            graph.set_input_fact(input, fact)?;
        }
        graph.into_optimized()?.into_runnable()
    }))
}

/// One plan for every shape. tract hands out lengths that it computes with symbols without putting numbers in, so a
/// graph that outputs such a length has no such plan.
fn compile_symbolic(graph: tract::InferenceModel) -> Result<Plan, String> {
    in_words(contained(move || {
        let graph = graph.into_optimized()?;
        for output in 0..graph.outputs.len() {
            if graph.output_fact(output)?.datum_type == DatumType::TDim {
                return Err(tract::TractError::msg(format!("output {output} is a symbolic length")));
            }
        }
        graph.into_runnable()
    }))
}

/// Gives every node a name of its own, as tract wants it.
fn name_nodes_apart(proto: &mut ModelProto) {
    let mut taken = HashSet::new();
    for (index, node) in proto.graph.iter_mut().flat_map(|graph| &mut graph.node).enumerate() {
        if !node.name.is_empty() && !taken.insert(node.name.clone()) {
            node.name = format!("{}#{index}", node.name);
            taken.insert(node.name.clone());
        }
    }
}

/// Refuses what tract would not run, or would run wrongly.
fn refuse_unsupported(file: &OnnxFile<'_>, onnx: &Onnx) -> Result<(), LoadError> {
    let opset = file.opset("ai.onnx");
    if opset > NEWEST_OPSET {
        return Err(LoadError::UnsupportedOpset {
            engine: Engine::Tract,
            domain: "ai.onnx".into(),
            opset,
            newest: NEWEST_OPSET,
        });
    }
    let known = |op: &str, domain: &str| DOMAINS.contains(&domain) && onnx.op_register.0.contains_key(op);
    if let Some(operator) = file.operators().into_iter().find(|operator| !known(operator.op, operator.domain))
    {
        return Err(LoadError::UnsupportedOp {
            engine: Engine::Tract,
            op: operator.op.into(),
            domain: operator.domain.into(),
            opset: operator.opset,
        });
    }
    let elsewhere = |why: String| {
        let why = format!("{why}: use ONNX Runtime (provider cpu)");
        Err(LoadError::Refused { engine: Engine::Tract, why })
    };
    if let Some(why) = distrust::objection(file) {
        return elsewhere(why);
    }
    let mut specs = file.signature.inputs.iter().chain(&file.signature.outputs);
    match specs.find(|spec| spec.data_type == DataType::String) {
        Some(spec) => elsewhere(format!("`{}` is of type BYTES (strings)", spec.name)),
        None => Ok(()),
    }
}

/// One error out of a contained call: a panic's message or tract's own.
fn in_words<T>(result: Result<tract::TractResult<T>, String>) -> Result<T, String> {
    result.and_then(|result| result.map_err(|error| format!("{error:#}"))).map_err(brief)
}

fn to_tract(tensor: &Tensor) -> tract::TractResult<tract::Tensor> {
    fn of<T: Datum + Copy>(tensor: &Tensor, elements: &[T]) -> tract::TractResult<tract::Tensor> {
        tract::Tensor::from_shape(tensor.shape(), elements)
    }
    match tensor.data() {
        Data::F32(elements) => of(tensor, elements),
        Data::F64(elements) => of(tensor, elements),
        Data::F16(elements) => of(tensor, elements),
        Data::I8(elements) => of(tensor, elements),
        Data::I16(elements) => of(tensor, elements),
        Data::I32(elements) => of(tensor, elements),
        Data::I64(elements) => of(tensor, elements),
        Data::U8(elements) => of(tensor, elements),
        Data::U16(elements) => of(tensor, elements),
        Data::U32(elements) => of(tensor, elements),
        Data::U64(elements) => of(tensor, elements),
        Data::Bool(elements) => of(tensor, elements),
        Data::String(_) => Err(tract::TractError::msg("strings are not supported")),
    }
}

fn from_tract(value: &tract::Tensor, data_type: DataType) -> tract::TractResult<Tensor> {
    fn of<T: Datum + Element>(value: &tract::Tensor) -> tract::TractResult<Tensor> {
        // Lengths that tract computes with symbols are of a type of its own; the file calls them INT64.
        let cast;
        let value = if value.datum_type() == DatumType::TDim {
            cast = value.cast_to::<i64>()?;
            cast.as_ref()
        } else {
            value
        };
        let elements = value.try_as_plain_ram()?.as_slice::<T>()?.to_vec();
        Ok(Tensor::from_vec(value.shape().to_vec(), elements)?)
    }
    match data_type {
        DataType::F32 => of::<f32>(value),
        DataType::F64 => of::<f64>(value),
        DataType::F16 => of::<half::f16>(value),
        DataType::I8 => of::<i8>(value),
        DataType::I16 => of::<i16>(value),
        DataType::I32 => of::<i32>(value),
        DataType::I64 => of::<i64>(value),
        DataType::U8 => of::<u8>(value),
        DataType::U16 => of::<u16>(value),
        DataType::U32 => of::<u32>(value),
        DataType::U64 => of::<u64>(value),
        DataType::Bool => of::<bool>(value),
        DataType::String => Err(tract::TractError::msg("strings are not supported")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, Golden, GoldenError, Sample};
    use crate::onnx::sketch::{Sketch, labels, node};
    use proptest::prelude::*;

    const FLOAT: i32 = 1;
    const INT64: i32 = 7;

    fn load(bytes: &[u8]) -> Result<TractModel, LoadError> {
        TractModel::load(OnnxFile::read(bytes)?)
    }

    fn rows(rows: usize) -> Tensor {
        Tensor::from_vec(vec![rows, 3], (0..rows * 3).map(|i| i as f32 - 4.0).collect()).unwrap()
    }

    #[test]
    fn the_version_is_the_one_that_is_built_in() {
        let lock = include_str!("../../../../Cargo.lock");
        assert!(lock.contains(&format!("name = \"tract-onnx\"\nversion = \"{VERSION}\"")));
    }

    #[test]
    fn a_free_dimension_takes_any_length() {
        let mut model = load(&Sketch::unary("Relu").bytes()).unwrap();
        for count in [1, 5, 2, 0, 40] {
            let outputs = model.score(&Tensors::from_iter([("x", rows(count))])).unwrap();
            let expected: Vec<f32> =
                rows(count).as_slice::<f32>().unwrap().iter().map(|x| x.max(0.0)).collect();
            assert_eq!(outputs.get("y"), Some(&Tensor::from_vec(vec![count, 3], expected).unwrap()));
        }
    }

    #[test]
    fn a_graph_without_a_plan_for_all_shapes_gets_one_for_each_and_keeps_a_few() {
        let mut sketch = Sketch::unary("Shape");
        sketch.outputs = vec![("y", INT64, vec![2])];
        let mut model = load(&sketch.bytes()).unwrap();
        for count in (1..=PLANS + 3).chain([1]) {
            let outputs = model.score(&Tensors::from_iter([("x", rows(count))])).unwrap();
            assert_eq!(
                outputs.get("y").and_then(|y| y.as_slice::<i64>()),
                Some([count as i64, 3].as_slice())
            );
        }
        let Plans::PerShapes { compiled, .. } = &model.plans else { panic!("one plan for every shape") };
        assert_eq!(compiled.len(), PLANS);
    }

    #[test]
    fn what_tract_can_not_run_is_refused_at_load() {
        let says = |sketch: Sketch| load(&sketch.bytes()).map(|_| ()).unwrap_err().to_string();
        assert_eq!(
            says(Sketch::unary("Frobnicate")),
            "tract does not have operator Frobnicate of domain ai.onnx opset 17"
        );
        let foreign = Sketch { nodes: vec![node("Relu", "acme", &["x"], &["y"])], ..Sketch::unary("Relu") };
        assert_eq!(says(foreign), "tract does not have operator Relu of domain acme opset 0");
        let future = Sketch { opset: 99, ..Sketch::unary("Relu") };
        assert_eq!(says(future), "tract does not know opset 99 of domain ai.onnx: it knows up to 25");
        let mut trees = node("TreeEnsembleClassifier", "ai.onnx.ml", &["x"], &["y", "p"]);
        trees.attribute.push(labels(2));
        assert!(
            says(Sketch { nodes: vec![trees], ..Sketch::unary("Relu") })
                .contains("two classes: use ONNX Runtime")
        );
        let dangling = Sketch { nodes: vec![node("Relu", "", &["z"], &["y"])], ..Sketch::unary("Relu") };
        assert_eq!(says(dangling), "tract refuses the model: nothing computes z");
        let missing = Sketch { outputs: vec![("nowhere", FLOAT, vec![1])], ..Sketch::unary("Relu") };
        assert!(says(missing).starts_with("tract refuses the model: "));
    }

    #[test]
    fn inputs_that_do_not_fit_are_the_callers_fault() {
        let mut model = load(&Sketch::unary("Relu").bytes()).unwrap();
        let wide = Tensor::from_vec(vec![1, 4], vec![0f32; 4]).unwrap();
        let error = model.score(&Tensors::from_iter([("x", wide)])).unwrap_err();
        assert!(matches!(error, ScoreError::BadInput(_)), "{error}");
    }

    #[test]
    fn a_golden_sample_that_differs_is_named() {
        let mut model = load(&Sketch::unary("Relu").bytes()).unwrap();
        let sample = |y: f32| {
            let inputs =
                Tensors::from_iter([("x", Tensor::from_vec(vec![1, 3], vec![-1f32, 2.0, 3.0]).unwrap())]);
            let outputs =
                Tensors::from_iter([("y", Tensor::from_vec(vec![1, 3], vec![0f32, 2.0, y]).unwrap())]);
            Golden { samples: vec![Sample { inputs, outputs }] }
        };
        let report = golden::check(&mut model, &sample(3.0005), 1e-3, 0.0).unwrap();
        assert_eq!((report.samples, report.elements), (1, 3));
        let error = golden::check(&mut model, &sample(3.1), 1e-3, 0.0).unwrap_err();
        assert!(matches!(error, GoldenError::Differs { sample: 0, index: 2, .. }), "{error}");
        assert!(golden::check(&mut model, &sample(3.0), f64::NAN, 0.0).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_an_error_or_a_model(cut in any::<prop::sample::Index>(), flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
            let nodes = vec![node("Relu", "", &["x"], &["h"]), node("Softmax", "", &["h"], &["y"])];
            let mut proto = ModelProto::decode(&*Sketch { nodes, ..Sketch::unary("Relu") }.bytes()).unwrap();
            let axis = tract_onnx::pb::AttributeProto { name: "axis".into(), r#type: 2, i: 1, ..Default::default() };
            proto.graph.as_mut().unwrap().node[1].attribute.push(axis);
            let mut bytes = proto.encode_to_vec();
            for (at, byte) in &flips {
                let at = at.index(bytes.len());
                bytes[at] ^= byte;
            }
            if flips.is_empty() {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Ok(mut model) = load(&bytes) {
                let inputs = model.signature().inputs.iter().map(|spec| spec.name.clone()).map(|name| (name, rows(2))).collect();
                let _ = model.score(&inputs);
            }
        }
    }
}
