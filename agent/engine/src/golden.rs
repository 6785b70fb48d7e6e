//! Golden samples: inputs with the outputs that a model must give for them.
//!
//! The file is JSON: `{"samples": [{"inputs": [tensor…], "outputs": [tensor…]}]}` with tensors as in [`crate::json`].
//! A float may differ by `atol + rtol × |expected|`; NaN equals NaN only, an infinity itself only; everything else is
//! exact. Outputs that a sample does not name are not compared.

use serde::Deserialize;

use crate::json::{self, JsonError, JsonTensor};
use crate::model::{Model, ScoreError};
use crate::tensor::{Data, Tensor, Tensors};

/// The largest file: it travels in every bundle over metered links, and is held in memory while a model is proved.
pub const MAX_BYTES: usize = 16 << 20;

/// The most samples: proving happens before every start of a version, and a thousand scores of a large model take
/// about a minute on a small board.
pub const MAX_SAMPLES: usize = 1000;

/// The samples of one file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Golden {
    /// In the order of the file; never empty.
    pub samples: Vec<Sample>,
}

/// Inputs and the outputs that belong to them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// What to score.
    pub inputs: Tensors,
    /// What must come.
    pub outputs: Tensors,
}

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GoldenReport {
    /// Samples that passed: all of them.
    pub samples: usize,
    /// Elements compared.
    pub elements: usize,
    /// The largest absolute difference of two floats.
    pub largest_difference: f64,
}

/// Why golden samples can't be read, or what a model gave instead of them. Samples count from 0.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GoldenError {
    /// The file is larger than [`MAX_BYTES`].
    #[error("golden samples: {bytes} bytes are more than {MAX_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The file holds no sample, or more than [`MAX_SAMPLES`].
    #[error("golden samples: the file holds {count}, it must hold 1 to {MAX_SAMPLES}")]
    Count {
        /// How many it holds.
        count: usize,
    },
    /// The file is not JSON of the right form.
    #[error("golden samples: {why}")]
    Json {
        /// The reader's words, with line and column.
        why: String,
    },
    /// A tensor of a sample is wrong in itself.
    #[error("golden sample {sample}: {source}")]
    Tensor {
        /// Which sample.
        sample: usize,
        /// What is wrong.
        source: JsonError,
    },
    /// A sample says nothing about the outputs.
    #[error("golden sample {sample}: it names no output")]
    NoOutput {
        /// Which sample.
        sample: usize,
    },
    /// A tolerance is negative or not a number.
    #[error("golden samples: tolerances must be finite and not negative: rtol {rtol}, atol {atol}")]
    Tolerance {
        /// The relative tolerance.
        rtol: f64,
        /// The absolute tolerance.
        atol: f64,
    },
    /// The model did not score a sample.
    #[error("golden sample {sample}: {source}")]
    Score {
        /// Which sample.
        sample: usize,
        /// Why.
        source: ScoreError,
    },
    /// The model has no such output.
    #[error("golden sample {sample}: the model gives no output `{output}`")]
    MissingOutput {
        /// Which sample.
        sample: usize,
        /// The output that the sample names.
        output: String,
    },
    /// An output has another type or shape.
    #[error("golden sample {sample}, output `{output}`: expected {expected}, the model gives {given}")]
    Kind {
        /// Which sample.
        sample: usize,
        /// Which output.
        output: String,
        /// The sample's type and shape.
        expected: String,
        /// The model's.
        given: String,
    },
    /// An element differs; the first that does.
    #[error(
        "golden sample {sample}, output `{output}`, element {index}: expected {expected}, the model gives {given}"
    )]
    Differs {
        /// Which sample.
        sample: usize,
        /// Which output.
        output: String,
        /// Which element, row-major.
        index: usize,
        /// The sample's.
        expected: String,
        /// The model's.
        given: String,
    },
}

/// Reads a file of golden samples.
///
/// # Errors
/// It is too large, not JSON, empty, or holds a tensor that is wrong in itself.
pub fn parse(bytes: &[u8]) -> Result<Golden, GoldenError> {
    if bytes.len() > MAX_BYTES {
        return Err(GoldenError::TooLarge { bytes: bytes.len() });
    }
    let file: GoldenFile =
        serde_json::from_slice(bytes).map_err(|error| GoldenError::Json { why: error.to_string() })?;
    if !(1..=MAX_SAMPLES).contains(&file.samples.len()) {
        return Err(GoldenError::Count { count: file.samples.len() });
    }
    let read = |(sample, tensors): (usize, SampleFile)| {
        let wrong = |source| GoldenError::Tensor { sample, source };
        let inputs = json::read_all(tensors.inputs).map_err(wrong)?;
        let outputs = json::read_all(tensors.outputs).map_err(wrong)?;
        if outputs.is_empty() {
            Err(GoldenError::NoOutput { sample })
        } else {
            Ok(Sample { inputs, outputs })
        }
    };
    Ok(Golden { samples: file.samples.into_iter().enumerate().map(read).collect::<Result<_, _>>()? })
}

/// Scores every sample and compares.
///
/// # Errors
/// The first sample that the model does not score, and the first element that differs.
pub fn check(
    model: &mut dyn Model,
    golden: &Golden,
    rtol: f64,
    atol: f64,
) -> Result<GoldenReport, GoldenError> {
    let tolerance = Tolerance { rtol, atol };
    if ![rtol, atol].iter().all(|value| value.is_finite() && *value >= 0.0) {
        return Err(GoldenError::Tolerance { rtol, atol });
    }
    let mut report = GoldenReport::default();
    for (sample, golden) in golden.samples.iter().enumerate() {
        let outputs = model.score(&golden.inputs).map_err(|source| GoldenError::Score { sample, source })?;
        for (name, expected) in golden.outputs.iter() {
            let output = || name.to_owned();
            let Some(given) = outputs.get(name) else {
                return Err(GoldenError::MissingOutput { sample, output: output() });
            };
            if (expected.data_type(), expected.shape()) != (given.data_type(), given.shape()) {
                let kind = |tensor: &Tensor| format!("{} {:?}", tensor.data_type(), tensor.shape());
                let (expected, given) = (kind(expected), kind(given));
                return Err(GoldenError::Kind { sample, output: output(), expected, given });
            }
            let largest = compare(expected.data(), given.data(), tolerance).map_err(|difference| {
                let Difference { index, expected, given } = difference;
                GoldenError::Differs { sample, output: output(), index, expected, given }
            })?;
            report.largest_difference = report.largest_difference.max(largest);
            report.elements += expected.len();
        }
        report.samples += 1;
    }
    Ok(report)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GoldenFile {
    samples: Vec<SampleFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SampleFile {
    inputs: Vec<JsonTensor>,
    outputs: Vec<JsonTensor>,
}

#[derive(Clone, Copy)]
struct Tolerance {
    rtol: f64,
    atol: f64,
}

struct Difference {
    index: usize,
    expected: String,
    given: String,
}

/// The largest difference of two floats, or the first element that is outside the tolerance. Both are of one type and
/// length.
fn compare(expected: &Data, given: &Data, tolerance: Tolerance) -> Result<f64, Difference> {
    match (expected, given) {
        (Data::F32(expected), Data::F32(given)) => {
            floats(expected, given, tolerance, |float| f64::from(*float))
        }
        (Data::F64(expected), Data::F64(given)) => floats(expected, given, tolerance, |float| *float),
        (Data::F16(expected), Data::F16(given)) => floats(expected, given, tolerance, |float| float.to_f64()),
        (Data::I8(expected), Data::I8(given)) => exact(expected, given),
        (Data::I16(expected), Data::I16(given)) => exact(expected, given),
        (Data::I32(expected), Data::I32(given)) => exact(expected, given),
        (Data::I64(expected), Data::I64(given)) => exact(expected, given),
        (Data::U8(expected), Data::U8(given)) => exact(expected, given),
        (Data::U16(expected), Data::U16(given)) => exact(expected, given),
        (Data::U32(expected), Data::U32(given)) => exact(expected, given),
        (Data::U64(expected), Data::U64(given)) => exact(expected, given),
        (Data::Bool(expected), Data::Bool(given)) => exact(expected, given),
        (Data::String(expected), Data::String(given)) => exact(expected, given),
        _ => Err(Difference {
            index: 0,
            expected: expected.data_type().to_string(),
            given: given.data_type().to_string(),
        }),
    }
}

fn floats<T>(
    expected: &[T],
    given: &[T],
    tolerance: Tolerance,
    value: impl Fn(&T) -> f64,
) -> Result<f64, Difference> {
    let mut largest = 0f64;
    for (index, (expected, given)) in expected.iter().map(&value).zip(given.iter().map(&value)).enumerate() {
        let same = expected == given || (expected.is_nan() && given.is_nan());
        let difference = (expected - given).abs();
        // False for NaN and for an infinity against anything else.
        let near = expected.is_finite() && difference <= tolerance.atol + tolerance.rtol * expected.abs();
        if !same && !near {
            return Err(Difference { index, expected: expected.to_string(), given: given.to_string() });
        }
        if near {
            largest = largest.max(difference);
        }
    }
    Ok(largest)
}

fn exact<T: PartialEq + std::fmt::Debug>(expected: &[T], given: &[T]) -> Result<f64, Difference> {
    let mut pairs = expected.iter().zip(given).enumerate();
    match pairs.find(|(_, (expected, given))| expected != given) {
        None => Ok(0.0),
        Some((index, (expected, given))) => {
            Err(Difference { index, expected: format!("{expected:?}"), given: format!("{given:?}") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXACT: Tolerance = Tolerance { rtol: 0.0, atol: 0.0 };

    fn says(expected: Data, given: Data, tolerance: Tolerance) -> Result<f64, (usize, String, String)> {
        compare(&expected, &given, tolerance).map_err(|found| (found.index, found.expected, found.given))
    }

    #[test]
    fn floats_differ_outside_the_tolerance_only() {
        let tolerance = Tolerance { rtol: 0.01, atol: 0.1 };
        let near = says(Data::F64(vec![100.0, -1.0]), Data::F64(vec![101.0, -1.1]), tolerance);
        assert!(near.is_ok_and(|largest| largest == 1.0));
        let far = says(Data::F64(vec![0.0, 100.0]), Data::F64(vec![0.0, 101.2]), tolerance);
        assert_eq!(far, Err((1, "100".into(), "101.2".into())));
    }

    #[test]
    fn what_is_not_a_number_equals_itself_only() {
        let tolerance = Tolerance { rtol: 1.0, atol: 1e30 };
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        assert_eq!(says(Data::F32(vec![nan, inf]), Data::F32(vec![nan, inf]), tolerance), Ok(0.0));
        for (expected, given) in [(nan, 0.0), (0.0, nan), (inf, 0.0), (0.0, inf), (inf, -inf), (inf, nan)] {
            assert!(
                says(Data::F32(vec![expected]), Data::F32(vec![given]), tolerance).is_err(),
                "{expected} {given}"
            );
        }
    }

    #[test]
    fn everything_else_is_exact() {
        let strings = |strings: &[&str]| Data::String(strings.iter().map(|s| s.to_string()).collect());
        assert_eq!(
            says(strings(&["a", "b"]), strings(&["a", "c"]), EXACT),
            Err((1, "\"b\"".into(), "\"c\"".into()))
        );
        let wide = Tolerance { rtol: 9.0, atol: 9.0 };
        assert!(says(Data::I64(vec![7]), Data::I64(vec![8]), wide).is_err());
    }

    #[test]
    fn a_file_is_bounded_and_its_mistakes_are_named() {
        let says = |text: &str| parse(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(says(r#"{"samples":[]}"#), "golden samples: the file holds 0, it must hold 1 to 1000");
        assert!(says(r#"{"sample":[]}"#).contains("unknown field `sample`"));
        let sample = r#"{"inputs":[],"outputs":[{"name":"y","shape":[2],"datatype":"FP32","data":[1]}]}"#;
        assert_eq!(
            says(&format!(r#"{{"samples":[{sample}]}}"#)),
            "golden sample 0: tensor `y`: shape [2] holds 2 elements, data has 1"
        );
        assert_eq!(
            says(r#"{"samples":[{"inputs":[],"outputs":[]}]}"#),
            "golden sample 0: it names no output"
        );
        assert_eq!(parse(&vec![b' '; MAX_BYTES + 1]), Err(GoldenError::TooLarge { bytes: MAX_BYTES + 1 }));
    }
}
