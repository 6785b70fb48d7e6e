//! The largest values of each row of an output, as Triton's extension for classification gives them: `VALUE:INDEX`, with
//! `:LABEL` where the bundle names its classes.

use engine::{Data, Tensor};

/// The `classes` largest values of each row of `tensor`, the largest first; the last dimension is that of the classes.
/// All of them where there are fewer.
///
/// # Errors
/// Its elements have no order.
pub(super) fn classify(tensor: &Tensor, classes: usize, labels: &[String]) -> Result<Tensor, String> {
    let width = tensor.shape().last().copied().unwrap_or(1);
    let classes = classes.min(width);
    let named = |index: usize, value: String| match labels.get(index) {
        Some(label) => format!("{value}:{index}:{label}"),
        None => format!("{value}:{index}"),
    };
    let mut texts = Vec::new();
    macro_rules! rows {
        ($elements:expr, $order:expr, $show:expr) => {
            for row in $elements.chunks(width.max(1)) {
                let mut indices: Vec<usize> = (0..row.len()).collect();
                let at = |index: &usize| row.get(*index).copied().unwrap_or_default();
                // Equal values keep their order.
                indices.sort_by(|left, right| $order(&at(right), &at(left)));
                texts.extend(indices.iter().take(classes).map(|index| named(*index, $show(at(index)))));
            }
        };
    }
    match tensor.data() {
        Data::F32(elements) => rows!(elements, f32::total_cmp, |value: f32| format!("{value:.6}")),
        Data::F64(elements) => rows!(elements, f64::total_cmp, |value: f64| format!("{value:.6}")),
        Data::F16(elements) => {
            rows!(elements, half_order, |value: half::f16| format!("{:.6}", value.to_f32()))
        }
        Data::I8(elements) => rows!(elements, Ord::cmp, |value: i8| value.to_string()),
        Data::I16(elements) => rows!(elements, Ord::cmp, |value: i16| value.to_string()),
        Data::I32(elements) => rows!(elements, Ord::cmp, |value: i32| value.to_string()),
        Data::I64(elements) => rows!(elements, Ord::cmp, |value: i64| value.to_string()),
        Data::U8(elements) => rows!(elements, Ord::cmp, |value: u8| value.to_string()),
        Data::U16(elements) => rows!(elements, Ord::cmp, |value: u16| value.to_string()),
        Data::U32(elements) => rows!(elements, Ord::cmp, |value: u32| value.to_string()),
        Data::U64(elements) => rows!(elements, Ord::cmp, |value: u64| value.to_string()),
        Data::Bool(_) | Data::String(_) => {
            return Err(format!("elements of type {} have no largest", tensor.data_type()));
        }
    }
    let mut shape = tensor.shape().to_vec();
    match shape.last_mut() {
        Some(last) => *last = classes,
        None => shape.push(1),
    }
    Tensor::from_vec(shape, texts).map_err(|error| error.to_string())
}

fn half_order(left: &half::f16, right: &half::f16) -> std::cmp::Ordering {
    left.total_cmp(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(tensor: &Tensor) -> Vec<&str> {
        tensor.as_slice::<String>().unwrap().iter().map(String::as_str).collect()
    }

    #[test]
    fn the_largest_of_each_row_come_first() {
        let tensor =
            Tensor::from_vec(vec![2, 3], vec![0.25f32, 0.5, 0.25, 1.0, f32::NEG_INFINITY, 2.0]).unwrap();
        let two = classify(&tensor, 2, &["a".to_owned(), "b".to_owned()]).unwrap();
        assert_eq!(two.shape(), [2, 2]);
        assert_eq!(texts(&two), ["0.500000:1:b", "0.250000:0:a", "2.000000:2", "1.000000:0:a"]);
        assert_eq!(classify(&tensor, 9, &[]).unwrap().shape(), [2, 3]);
        let scalar = classify(&Tensor::from_vec(vec![], vec![7i64]).unwrap(), 1, &[]).unwrap();
        assert_eq!(texts(&scalar), ["7:0"]);
        let none = classify(&Tensor::from_vec(vec![0, 3], Vec::<u8>::new()).unwrap(), 1, &[]).unwrap();
        assert_eq!(none.shape(), [0, 1]);
        assert!(classify(&Tensor::from_vec(vec![1], vec![true]).unwrap(), 1, &[]).is_err());
    }
}
