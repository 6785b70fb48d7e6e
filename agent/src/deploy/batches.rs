//! Whether rows of several requests may be scored as one: only where none of them changes what comes of another.

use engine::golden::{self, Golden, Sample};
use engine::{Data, Model, Tensor, Tensors, batch};

/// Rows that are scored together at the most: a few that differ tell as much as many.
const MOST: usize = 8;

/// How far an output may be from what it is alone, where no golden samples say it: engines add up in another order.
const RTOL: f64 = 1e-3;
/// See [`RTOL`].
const ATOL: f64 = 1e-4;

/// Scores rows that differ, of the golden samples or else made up, each alone and then together, as many as fit into
/// `rows`; what comes of them must be the same.
///
/// # Errors
/// It is not, or can't be found out.
pub(super) fn prove(
    model: &mut dyn Model,
    golden: Option<&(Golden, f64, f64)>,
    rows: u32,
) -> Result<(), String> {
    if !model.signature().batch_dimension() {
        return Err("not all of its inputs and outputs have a free first dimension".to_owned());
    }
    let (samples, rtol, atol) = match golden {
        Some((golden, rtol, atol)) => {
            (golden.samples.iter().map(|sample| sample.inputs.clone()).collect(), *rtol, *atol)
        }
        None => (Vec::from_iter(model.signature().zeros()), RTOL, ATOL),
    };
    let different = different(samples, MOST.min(rows as usize));
    if different.len() < 2 {
        return Err("its golden samples have no two rows that differ and could be scored together".to_owned());
    }
    let mut alone = Vec::new();
    for inputs in &different {
        alone.push(model.score(inputs).map_err(|error| format!("a row by itself: {error}"))?);
    }
    let inputs = batch::join(&Vec::from_iter(&different));
    let (Some(inputs), Some(outputs)) = (inputs, batch::join(&Vec::from_iter(&alone))) else {
        return Err("its rows can't be joined".to_owned());
    };
    let together = Golden { samples: vec![Sample { inputs, outputs }] };
    golden::check(model, &together, rtol, atol).map(drop).map_err(|error| format!("scored together, {error}"))
}

/// Single rows of which no two are the same, nor of different shapes: of each sample the first, and variations of the first
/// of all.
fn different(samples: Vec<Tensors>, most: usize) -> Vec<Tensors> {
    let mut rows: Vec<Tensors> = samples.iter().filter_map(first_row).collect();
    rows.extend(rows.first().map(varied));
    let mut different: Vec<Tensors> = Vec::new();
    for row in rows.into_iter().rev() {
        let fits = different.first().is_none_or(|first| batch::alike(first, &row));
        if different.len() < most && fits && !different.contains(&row) {
            different.push(row);
        }
    }
    different
}

fn first_row(inputs: &Tensors) -> Option<Tensors> {
    let rows = batch::rows(inputs)?;
    batch::split(inputs, &[1, rows - 1])?.into_iter().next()
}

/// The same with other fractions; integers may be places in a table, and stay.
fn varied(row: &Tensors) -> Tensors {
    let vary = |(name, tensor): (&str, &Tensor)| {
        let data = match tensor.data() {
            Data::F32(numbers) => Data::F32(numbers.iter().map(|number| number * 0.5 + 0.25).collect()),
            Data::F64(numbers) => Data::F64(numbers.iter().map(|number| number * 0.5 + 0.25).collect()),
            other => other.clone(),
        };
        Some((name.to_owned(), Tensor::new(tensor.shape().to_vec(), data).ok()?))
    };
    row.iter().filter_map(vary).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives each number less a part of what is before it.
    struct Less(engine::Signature, f32);

    impl Model for Less {
        fn signature(&self) -> &engine::Signature {
            &self.0
        }

        fn score(&mut self, inputs: &Tensors) -> Result<Tensors, engine::ScoreError> {
            let mut before = 0.0;
            let numbers = inputs.get("x").unwrap().as_slice::<f32>().unwrap().iter();
            Ok(numbers_of(
                &numbers.map(|x| x - self.1 * std::mem::replace(&mut before, *x)).collect::<Vec<_>>(),
            ))
        }
    }

    fn numbers_of(numbers: &[f32]) -> Tensors {
        [("x", engine::Tensor::from_vec(vec![numbers.len()], numbers.to_vec()).unwrap())]
            .into_iter()
            .collect()
    }

    #[test]
    fn only_a_model_whose_rows_do_not_touch_may_batch() {
        let spec = |length| engine::TensorSpec {
            name: "x".to_owned(),
            data_type: engine::DataType::F32,
            shape: vec![length],
        };
        let signature =
            |length| engine::Signature { inputs: vec![spec(length)], outputs: vec![spec(length)] };
        let sample = |numbers: &[f32]| Sample { inputs: numbers_of(numbers), outputs: numbers_of(numbers) };
        let golden = (Golden { samples: vec![sample(&[1.0]), sample(&[2.0]), sample(&[3.0])] }, 0.0, 1e-6);
        assert_eq!(prove(&mut Less(signature(None), 0.0), Some(&golden), 8), Ok(()));
        let why = prove(&mut Less(signature(None), 0.5), Some(&golden), 2).unwrap_err();
        assert!(why.contains("scored together"), "{why}");
        // Samples that say little are varied, and many rows are not needed.
        let [one, large] = [vec![sample(&[1.0]), sample(&[1.0])], vec![sample(&[0.0; 20])]];
        for samples in [one, large] {
            let golden = (Golden { samples }, 0.0, 1e-6);
            assert!(prove(&mut Less(signature(None), 0.5), Some(&golden), 8).is_err());
            assert_eq!(prove(&mut Less(signature(None), 0.0), Some(&golden), 8), Ok(()));
        }
        assert!(prove(&mut Less(signature(None), 0.5), None, 8).is_err());
        assert_eq!(prove(&mut Less(signature(None), 0.0), None, 8), Ok(()));
        assert!(prove(&mut Less(signature(None), 0.0), Some(&golden), 1).is_err(), "nothing fits");
        assert!(prove(&mut Less(signature(Some(1)), 0.0), None, 8).is_err());
    }
}
