//! Both engines give the same: every model of `EDGEWISE_TEST_MODELS` (else `target/test-models`, which
//! `tests/fetch-models` fills) and every sample bundle of the repository, scored on tract and on ONNX Runtime.
//!
//! Each of these models is left as a bundle with what it gave here, in `target/agreement/both`, or `onnxruntime` where
//! tract refuses it, for `tests/agreement.py` to check it on another machine's engines.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test says what went wrong by panicking"
)]

use std::path::{Path, PathBuf};

use engine::golden::{self, Golden, Sample};
use engine::json::write_all;
use engine::{
    Data, DataType, Engine, LoadOptions, Loaded, Optimization, Provider, Tensor, TensorSpec, Tensors, Tuning,
    load,
};

mod support;

const RTOL: f64 = 1e-3;
const ATOL: f64 = 1e-4;

/// Files that tract must refuse, by a part of their name, and a part of what it must say.
const REFUSED_BY_TRACT: [(&str, &str); 6] = [
    ("silero_vad.onnx", "\"If_0\" If"),
    ("silero_vad_16k_op15", "decoder/If\" If"),
    ("silero_vad_half", "decoder/If\" If"),
    ("trees_binary", "two classes"),
    ("boosted_binary", "two classes"),
    ("identity_string", "BYTES (strings)"),
];

/// Of the standard's own networks, those with few weights.
const LIGHT: [&str; 2] = ["onnx/light/light_squeezenet.onnx", "onnx/light/light_shufflenet.onnx"];

/// Lengths of free dimensions, in order, where a network does not take just any; by a part of the file's name.
const LENGTHS: [(&str, &[usize]); 5] = [
    ("_det_", &[1, 96, 160]),
    ("_rec_", &[1, 48, 320]),
    ("_cls_", &[1, 48, 192]),
    ("16k_sequence", &[5]),
    ("silero_vad", &[1, 576, 1]),
];

#[test]
fn every_model_gives_the_same_on_both_engines() {
    let directory = models();
    let mut files = model_files();
    assert!(!files.is_empty(), "no model in {}: run tests/fetch-models", directory.display());
    files.extend(LIGHT.map(|name| directory.join(name)));
    let mut compared = 0;
    for file in &files {
        let name = file.file_name().unwrap().to_string_lossy();
        let onnx = std::fs::read(file).unwrap();
        let mut runtime = engine(&onnx, Provider::Cpu).unwrap_or_else(|error| panic!("{name}: {error}"));
        let inputs = inputs(&name, &runtime.model.signature().inputs);
        let outputs = runtime.model.score(&inputs).unwrap_or_else(|error| panic!("{name}: {error}"));
        let tract = engine(&onnx, Provider::Tract);
        let refused = REFUSED_BY_TRACT.iter().find(|(part, _)| name.contains(part));
        leave_bundle(file, if refused.is_some() { "onnxruntime" } else { "both" }, &inputs, &outputs);
        if let Some((_, reason)) = refused {
            let error = tract.expect_err(&name).to_string();
            assert!(error.contains(reason), "{name}: {error}");
            continue;
        }
        let mut tract = tract.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(tract.model.signature(), runtime.model.signature(), "{name}");
        let expected = Golden { samples: vec![Sample { inputs, outputs }] };
        let report = golden::check(&mut *tract.model, &expected, RTOL, ATOL);
        let report = report.unwrap_or_else(|error| panic!("{name}: {error}"));
        println!("{name}: {} elements, at most {:.1e} apart", report.elements, report.largest_difference);
        compared += 1;
    }
    assert!(compared >= files.len() / 2, "{compared} of {} models were compared", files.len());
}

#[test]
fn every_sample_bundle_gives_its_golden_outputs_on_both_engines() {
    let mut files = Vec::new();
    onnx_files(&support::workspace().join("modules/samples"), &mut files);
    assert!(!files.is_empty(), "no sample bundle");
    for file in files {
        let onnx = std::fs::read(&file).unwrap();
        let samples = golden::parse(&std::fs::read(file.with_file_name("golden.json")).unwrap()).unwrap();
        for provider in [Provider::Cpu, Provider::Tract] {
            let mut loaded = engine(&onnx, provider).unwrap();
            let report = golden::check(&mut *loaded.model, &samples, RTOL, ATOL);
            assert!(report.is_ok(), "{} on {provider}: {}", file.display(), report.unwrap_err());
        }
    }
}

#[test]
fn auto_takes_onnx_runtime_and_says_why_when_it_does_not() {
    let onnx = std::fs::read(find("identity_f32")).unwrap();
    let loaded = engine(&onnx, Provider::Auto).unwrap();
    assert_eq!((loaded.engine, loaded.why), (Engine::OnnxRuntime, None));
    // Relu takes no UINT16 in opset 13, which ONNX Runtime insists on and tract does not.
    let loaded =
        engine(&with_operator(&std::fs::read(find("identity_u16")).unwrap(), "Relu"), Provider::Auto)
            .unwrap();
    assert_eq!((loaded.engine, loaded.provider), (Engine::Tract, Provider::Tract));
    assert!(
        loaded.why.as_ref().is_some_and(|why| why.contains("ONNX Runtime refuses the model")),
        "{loaded:?}"
    );
    let error = engine(&with_operator(&onnx, "Frobnica"), Provider::Auto).unwrap_err().to_string();
    assert!(error.contains("ONNX Runtime does not have operator Frobnica of domain ai.onnx"), "{error}");
    assert!(error.contains("tract does not have operator Frobnica"), "{error}");
}

#[test]
fn strings_pass_through_onnx_runtime() {
    let onnx = std::fs::read(find("identity_string")).unwrap();
    let mut loaded = engine(&onnx, Provider::Cpu).unwrap();
    let spec = loaded.model.signature().inputs.first().unwrap().clone();
    let shape: Vec<usize> = spec.shape.iter().map(|length| length.unwrap_or(2)).collect();
    let count = shape.iter().product();
    let strings: Vec<String> = (0..count).map(|i| format!("né {i} 木")).collect();
    let tensor = Tensor::from_vec(shape.clone(), strings).unwrap();
    let outputs = loaded.model.score(&Tensors::from_iter([(spec.name.clone(), tensor.clone())])).unwrap();
    assert_eq!(outputs.iter().next().map(|(_, output)| output), Some(&tensor));
    let nul = Tensor::from_vec(shape, vec!["a\0b".to_owned(); count]).unwrap();
    let error = loaded.model.score(&Tensors::from_iter([(spec.name, nul)])).unwrap_err();
    assert!(matches!(error, engine::ScoreError::BadInput(_)), "{error}");
}

#[test]
fn a_tensor_without_elements_passes_through_both_engines() {
    let identities = model_files().into_iter().filter(|file| file.to_string_lossy().contains("identity_"));
    let identities: Vec<PathBuf> = identities.collect();
    assert_eq!(identities.len(), DataType::ALL.len());
    for file in identities {
        for provider in [Provider::Cpu, Provider::Tract] {
            let Ok(mut loaded) = engine(&std::fs::read(&file).unwrap(), provider) else { continue };
            let spec = loaded.model.signature().inputs.first().unwrap().clone();
            let empty = Tensor::new(vec![0], Random(1).data(spec.data_type, 0)).unwrap();
            let outputs = loaded.model.score(&Tensors::from_iter([(spec.name, empty.clone())])).unwrap();
            assert_eq!(outputs.iter().next().map(|(_, output)| output), Some(&empty), "{}", file.display());
        }
    }
}

#[test]
fn hostile_bytes_never_panic_on_onnx_runtime() {
    for name in ["two_in_two_out", "zipmap"] {
        let onnx = std::fs::read(find(name)).unwrap();
        for end in (0..onnx.len()).step_by(onnx.len().div_ceil(200)) {
            let _ = engine(&onnx[..end], Provider::Cpu);
        }
        let mut random = Random(7);
        for _ in 0..300 {
            let mut bytes = onnx.clone();
            for _ in 0..1 + random.below(3) {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
            if let Ok(mut loaded) = engine(&bytes, Provider::Cpu) {
                let small = loaded.model.signature().inputs.iter().all(|spec| {
                    spec.shape.len() < 5
                        && spec.shape.iter().all(|length| length.is_none_or(|length| length < 100))
                });
                if small {
                    let inputs = inputs(name, &loaded.model.signature().inputs.clone());
                    let _ = loaded.model.score(&inputs);
                }
            }
        }
    }
}

#[test]
fn however_a_model_is_prepared_its_golden_samples_hold() {
    let sample = support::workspace().join("modules/samples/power-demand/2");
    let onnx = std::fs::read(sample.join("model.onnx")).unwrap();
    let samples = golden::parse(&std::fs::read(sample.join("golden.json")).unwrap()).unwrap();
    for name in ["none", "basic", "extended", "all"] {
        for arena in [true, false] {
            let tuning = Tuning { optimization: name.parse().unwrap(), arena };
            let mut loaded = load(&onnx, &LoadOptions { tuning, ..options(Provider::Cpu) }).unwrap();
            golden::check(loaded.model.as_mut(), &samples, RTOL, ATOL)
                .unwrap_or_else(|error| panic!("{tuning:?}: {error}"));
        }
    }
    assert!("most".parse::<Optimization>().unwrap_err().to_string().contains("extended"));
}

fn engine(onnx: &[u8], provider: Provider) -> Result<Loaded, engine::LoadError> {
    load(onnx, &options(provider))
}

fn options(provider: Provider) -> LoadOptions {
    LoadOptions { provider, threads: 1, onnxruntime: Some(support::library()), ..LoadOptions::default() }
}

/// The bundle `target/agreement/ENGINES/NAME` of a model, with these outputs for these inputs as its golden sample.
fn leave_bundle(model: &Path, engines: &str, inputs: &Tensors, outputs: &Tensors) {
    let directory = support::target().join("agreement").join(engines).join(model.file_stem().unwrap());
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::copy(model, directory.join("model.onnx")).unwrap();
    let sample = serde_json::json!({ "inputs": write_all(inputs), "outputs": write_all(outputs) });
    let golden = serde_json::json!({ "samples": [sample] });
    std::fs::write(directory.join("golden.json"), golden.to_string()).unwrap();
    std::fs::write(
        directory.join("model.toml"),
        format!("[golden]\nfile = \"golden.json\"\nrtol = {RTOL}\natol = {ATOL}\n"),
    )
    .unwrap();
}

fn models() -> PathBuf {
    let named = std::env::var_os("EDGEWISE_TEST_MODELS").map(PathBuf::from);
    let directory = named.unwrap_or_else(|| support::target().join("test-models"));
    assert!(directory.is_dir(), "no test models at {}: run tests/fetch-models", directory.display());
    directory
}

/// All but the standard's own tests, which lie in `onnx`.
fn model_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    onnx_files(&models(), &mut files);
    files.retain(|file| !file.starts_with(models().join("onnx")));
    files
}

/// An Identity's file with another operator in its place, of 8 letters, so that the lengths in the file stay true, or of
/// fewer, and then an empty field of documentation makes up for them.
fn with_operator(identity: &[u8], op: &str) -> Vec<u8> {
    let at = identity.windows(8).position(|window| window == b"Identity").unwrap();
    let mut field = [&[op.len() as u8], op.as_bytes()].concat();
    if let Some(rest) = 8usize.checked_sub(op.len() + 2) {
        field.extend([0x32, rest as u8]);
        field.resize(9, b' ');
    }
    [&identity[..at - 1], &field, &identity[at + 8..]].concat()
}

fn find(part: &str) -> PathBuf {
    let files = model_files();
    let named = |file: &PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().contains(part));
    files.into_iter().find(named).unwrap_or_else(|| panic!("no test model {part}: run tests/fetch-models"))
}

fn onnx_files(directory: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            onnx_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "onnx") {
            files.push(path);
        }
    }
}

fn inputs(name: &str, specs: &[TensorSpec]) -> Tensors {
    let lengths =
        LENGTHS.iter().find(|(part, _)| name.contains(part)).map_or([].as_slice(), |(_, lengths)| lengths);
    let mut random = Random(42);
    let tensor = |spec: &TensorSpec| {
        let mut lengths = lengths.iter();
        let free = |length: &Option<usize>| length.unwrap_or_else(|| lengths.next().copied().unwrap_or(2));
        let shape: Vec<usize> = spec.shape.iter().map(free).collect();
        let count = shape.iter().product();
        // The sampling rate of silero: any other is refused.
        let data =
            if spec.name == "sr" { Data::I64(vec![16_000]) } else { random.data(spec.data_type, count) };
        (spec.name.clone(), Tensor::new(shape, data).unwrap())
    };
    specs.iter().map(tensor).collect()
}

/// xorshift: the same numbers on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Between -1 and 1.
    fn float(&mut self) -> f64 {
        (self.below(2001) as f64 - 1000.0) / 1000.0
    }

    fn data(&mut self, data_type: DataType, count: usize) -> Data {
        fn fill<T>(count: usize, of: impl FnMut(usize) -> T) -> Vec<T> {
            (0..count).map(of).collect()
        }
        match data_type {
            DataType::F32 => Data::F32(fill(count, |_| self.float() as f32)),
            DataType::F64 => Data::F64(fill(count, |_| self.float())),
            DataType::F16 => Data::F16(fill(count, |_| half::f16::from_f64(self.float()))),
            DataType::I8 => Data::I8(fill(count, |_| self.below(100) as i8)),
            DataType::I16 => Data::I16(fill(count, |_| self.below(100) as i16)),
            DataType::I32 => Data::I32(fill(count, |_| self.below(100) as i32)),
            DataType::I64 => Data::I64(fill(count, |_| self.below(100) as i64)),
            DataType::U8 => Data::U8(fill(count, |_| self.below(100) as u8)),
            DataType::U16 => Data::U16(fill(count, |_| self.below(100) as u16)),
            DataType::U32 => Data::U32(fill(count, |_| self.below(100) as u32)),
            DataType::U64 => Data::U64(fill(count, |_| self.below(100) as u64)),
            DataType::Bool => Data::Bool(fill(count, |_| self.below(2) == 1)),
            DataType::String => Data::String(fill(count, |_| self.below(100).to_string())),
        }
    }
}
