//! Several sets of inputs scored as one: joined along the first dimension, and their outputs taken apart again.
//!
//! Invariant: what is taken apart has as many rows as were joined, in the same order; where a model gives another number of
//! them, there is nothing to take apart.

use crate::tensor::{Data, Tensor, Tensors};

/// The rows of inputs that can be joined with others: the length of the first dimension, where that is the same for each
/// and not 0.
pub fn rows(inputs: &Tensors) -> Option<usize> {
    let mut lengths = inputs.iter().map(|(_, tensor)| tensor.shape().first().copied());
    let rows = lengths.next()?.filter(|rows| *rows > 0)?;
    lengths.all(|length| length == Some(rows)).then_some(rows)
}

/// Whether two sets of inputs differ in nothing but their values, their order and their rows.
pub fn alike(one: &Tensors, other: &Tensors) -> bool {
    let same = |(name, tensor): (&str, &Tensor)| {
        other.get(name).is_some_and(|other| {
            tensor.data_type() == other.data_type() && tensor.shape().get(1..) == other.shape().get(1..)
        })
    };
    one.len() == other.len() && one.iter().all(same)
}

/// Sets of inputs as one, below each other; `None` where they are not [`alike`]. The caller bounds their size.
pub fn join(sets: &[&Tensors]) -> Option<Tensors> {
    let (first, others) = sets.split_first()?;
    if !others.iter().all(|other| alike(first, other)) {
        return None;
    }
    let joined = |(name, tensor): (&str, &Tensor)| {
        let parts = || sets.iter().filter_map(|set| set.get(name));
        let mut data = Data::with_capacity(tensor.data_type(), parts().map(Tensor::len).sum());
        let mut shape = tensor.shape().to_vec();
        *shape.first_mut()? = parts().filter_map(|part| part.shape().first()).sum();
        parts().all(|part| data.append(part.data())).then_some(())?;
        Some((name.to_owned(), Tensor::new(shape, data).ok()?))
    };
    first.iter().map(joined).collect()
}

/// The outputs of joined inputs, for each set of so many `rows`; `None` where an output has not the rows of all of them.
pub fn split(outputs: &Tensors, rows: &[usize]) -> Option<Vec<Tensors>> {
    let all: usize = rows.iter().sum();
    let mut begin = 0;
    let sets = rows.iter().map(|rows| {
        let range = begin..begin + rows;
        begin = range.end;
        let part = |(name, tensor): (&str, &Tensor)| {
            let mut shape = tensor.shape().to_vec();
            let length = shape.first_mut().filter(|length| **length == all)?;
            *length = *rows;
            let row = tensor.len().checked_div(all)?;
            let data = tensor.data().part(range.start * row..range.end * row)?;
            Some((name.to_owned(), Tensor::new(shape, data).ok()?))
        };
        outputs.iter().map(part).collect()
    });
    sets.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(rows: usize, columns: usize, first: i64) -> Tensors {
        let last = first + (rows * columns) as i64;
        let numbers = Tensor::from_vec(vec![rows, columns], (first..last).collect::<Vec<_>>()).unwrap();
        let words = (0..rows).map(|row| format!("{first}-{row}")).collect();
        [("numbers", numbers), ("words", Tensor::from_vec::<String>(vec![rows], words).unwrap())]
            .into_iter()
            .collect()
    }

    proptest! {
        #[test]
        fn what_was_joined_comes_apart_again(
            sets in prop::collection::vec((1usize..5, any::<i32>()), 1..6), columns in 0usize..4,
        ) {
            let rows: Vec<usize> = sets.iter().map(|(rows, _)| *rows).collect();
            let sets: Vec<Tensors> =
                sets.iter().map(|(rows, first)| set(*rows, columns, i64::from(*first))).collect();
            let joined = join(&sets.iter().collect::<Vec<_>>()).unwrap();
            prop_assert_eq!(super::rows(&joined), Some(rows.iter().sum()));
            prop_assert_eq!(split(&joined, &rows), Some(sets));
        }
    }

    #[test]
    fn only_what_has_the_same_rows_everywhere_has_rows() {
        let of = |shapes: &[&[usize]]| {
            let tensor = |shape: &&[usize]| {
                Tensor::from_vec(shape.to_vec(), vec![0u8; shape.iter().product()]).unwrap()
            };
            rows(
                &shapes.iter().map(tensor).enumerate().map(|(at, tensor)| (at.to_string(), tensor)).collect(),
            )
        };
        assert_eq!(of(&[&[3, 2], &[3]]), Some(3));
        for none in [&[&[3, 2][..], &[2]][..], &[&[]], &[&[0, 2]], &[]] {
            assert_eq!(of(none), None, "{none:?}");
        }
    }

    #[test]
    fn what_is_not_alike_is_not_joined() {
        let numbers = |shape: &[usize], name: &str| -> Tensors {
            let tensor = Tensor::from_vec(shape.to_vec(), vec![0i64; shape.iter().product()]).unwrap();
            [(name, tensor)].into_iter().collect()
        };
        let one = numbers(&[1, 2], "x");
        let floats: Tensors =
            [("x", Tensor::from_vec(vec![1, 2], vec![0f32; 2]).unwrap())].into_iter().collect();
        for other in
            [numbers(&[1, 3], "x"), numbers(&[1, 2, 1], "x"), numbers(&[1, 2], "y"), floats, set(1, 2, 0)]
        {
            assert_eq!(join(&[&one, &other]), None, "{other:?}");
        }
        assert!(join(&[&one, &numbers(&[7, 2], "x")]).is_some());
    }

    #[test]
    fn outputs_with_other_rows_are_not_taken_apart() {
        let outputs = set(3, 2, 0);
        assert!(split(&outputs, &[1, 2]).is_some());
        assert_eq!(split(&outputs, &[1, 1]), None);
        let scalar: Tensors = [("x", Tensor::from_vec(vec![], vec![0f32]).unwrap())].into_iter().collect();
        assert_eq!(split(&scalar, &[1]), None);
    }
}
