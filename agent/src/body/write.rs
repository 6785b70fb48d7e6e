//! From the tensors that a model gave to JSON: nested lists, and the names of classes.

use engine::{Data, Tensor, Tensors};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

use crate::service::Answer;

/// An answer as an object: `model`, `version`, `request_id`, `outputs` by name and, where [`labels`] has them,
/// `labels` with one name for each row.
pub struct Prediction<'a>(pub &'a Answer);

/// A tensor as nested lists; a scalar as a lone value. NaN and infinities are null, for JSON has neither.
pub struct Nested<'a>(pub &'a Tensor);

/// Tensors as an object of nested lists by name.
pub struct Outputs<'a>(pub &'a Tensors);

/// Tensors as Azure ML's `/score` gives them: the only one as nested lists, several as an object of those by name.
pub struct Lone<'a>(pub &'a Tensors);

/// The name of the class that each row was given, where the outputs tell: an integer output of one element a row
/// is an index into `names`; else of a floating-point output with one element for each name the largest wins.
/// `None` without names, or where an index has none.
pub fn labels<'a>(names: &'a [String], outputs: &Tensors) -> Option<Vec<&'a str>> {
    if names.is_empty() {
        return None;
    }
    let mut tensors = outputs.iter().map(|(_, tensor)| tensor);
    let classes = outputs.iter().find_map(|(_, tensor)| indices(tensor));
    let classes = classes.or_else(|| tensors.find_map(|tensor| largest(tensor, names.len())))?;
    let name = |class| usize::try_from(class).ok().and_then(|class| names.get(class)).map(String::as_str);
    classes.into_iter().map(name).collect()
}

impl Serialize for Prediction<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Answer { live, scored, request_id } = self.0;
        let labels = labels(&live.facts.labels, &scored.outputs);
        let mut map = serializer.serialize_map(Some(4 + usize::from(labels.is_some())))?;
        map.serialize_entry("model", &live.facts.name)?;
        map.serialize_entry("version", &live.facts.version)?;
        map.serialize_entry("request_id", request_id)?;
        map.serialize_entry("outputs", &Outputs(&scored.outputs))?;
        if let Some(labels) = labels {
            map.serialize_entry("labels", &labels)?;
        }
        map.end()
    }
}

impl Serialize for Outputs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, tensor) in self.0.iter() {
            map.serialize_entry(name, &Nested(tensor))?;
        }
        map.end()
    }
}

impl Serialize for Lone<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tensors = self.0.iter();
        match (tensors.next(), tensors.next()) {
            (Some((_, tensor)), None) => Nested(tensor).serialize(serializer),
            _ => Outputs(self.0).serialize(serializer),
        }
    }
}

impl Serialize for Nested<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let shape = self.0.shape();
        match self.0.data() {
            Data::F32(elements) => Level { shape, elements }.serialize(serializer),
            Data::F64(elements) => Level { shape, elements }.serialize(serializer),
            Data::F16(elements) => {
                let elements: Vec<f32> = elements.iter().map(|element| element.to_f32()).collect();
                Level { shape, elements: &elements }.serialize(serializer)
            }
            Data::I8(elements) => Level { shape, elements }.serialize(serializer),
            Data::I16(elements) => Level { shape, elements }.serialize(serializer),
            Data::I32(elements) => Level { shape, elements }.serialize(serializer),
            Data::I64(elements) => Level { shape, elements }.serialize(serializer),
            Data::U8(elements) => Level { shape, elements }.serialize(serializer),
            Data::U16(elements) => Level { shape, elements }.serialize(serializer),
            Data::U32(elements) => Level { shape, elements }.serialize(serializer),
            Data::U64(elements) => Level { shape, elements }.serialize(serializer),
            Data::Bool(elements) => Level { shape, elements }.serialize(serializer),
            Data::String(elements) => Level { shape, elements }.serialize(serializer),
        }
    }
}

/// The part of a tensor under one list: its dimensions and its elements.
struct Level<'a, T> {
    shape: &'a [usize],
    elements: &'a [T],
}

impl<T: Serialize> Serialize for Level<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some((length, shape)) = self.shape.split_first() else {
            return self.elements.first().serialize(serializer);
        };
        let mut list = serializer.serialize_seq(Some(*length))?;
        let stride = self.elements.len().checked_div(*length).unwrap_or(0);
        let mut rest = self.elements;
        for _ in 0..*length {
            let (elements, after) = rest.split_at_checked(stride).unwrap_or((rest, &[]));
            list.serialize_element(&Level { shape, elements })?;
            rest = after;
        }
        list.end()
    }
}

/// The elements of an integer tensor of one element a row.
fn indices(tensor: &Tensor) -> Option<Vec<i64>> {
    if !matches!(tensor.shape(), [_] | [_, 1]) {
        return None;
    }
    match tensor.data() {
        Data::I32(elements) => Some(elements.iter().map(|element| i64::from(*element)).collect()),
        Data::I64(elements) => Some(elements.clone()),
        Data::U8(elements) => Some(elements.iter().map(|element| i64::from(*element)).collect()),
        Data::U32(elements) => Some(elements.iter().map(|element| i64::from(*element)).collect()),
        _ => None,
    }
}

/// The position of the largest element of each row of `classes` elements.
fn largest(tensor: &Tensor, classes: usize) -> Option<Vec<i64>> {
    if !matches!(tensor.shape(), [_, columns] if *columns == classes) {
        return None;
    }
    let elements: Vec<f64> = match tensor.data() {
        Data::F32(elements) => elements.iter().map(|element| f64::from(*element)).collect(),
        Data::F64(elements) => elements.clone(),
        Data::F16(elements) => elements.iter().map(|element| element.to_f64()).collect(),
        _ => return None,
    };
    let best = |row: &[f64]| {
        let (at, best) = row.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b))?;
        // A row with NaN has no largest element; total_cmp puts NaN above all.
        if best.is_nan() { None } else { i64::try_from(at).ok() }
    };
    elements.chunks_exact(classes).map(best).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(tensor: Tensor) -> String {
        serde_json::to_string(&Nested(&tensor)).unwrap()
    }

    #[test]
    fn nested_lists_follow_the_shape() {
        let elements = || vec![1i32, 2, 3, 4, 5, 6];
        assert_eq!(text(Tensor::from_vec(vec![2, 3], elements()).unwrap()), "[[1,2,3],[4,5,6]]");
        assert_eq!(text(Tensor::from_vec(vec![3, 1, 2], elements()).unwrap()), "[[[1,2]],[[3,4]],[[5,6]]]");
        assert_eq!(text(Tensor::from_vec(vec![], vec![0.5f32]).unwrap()), "0.5");
        assert_eq!(text(Tensor::from_vec(vec![2, 0], Vec::<u8>::new()).unwrap()), "[[],[]]");
        assert_eq!(text(Tensor::from_vec(vec![2], vec![f32::NAN, f32::INFINITY]).unwrap()), "[null,null]");
        assert_eq!(text(Tensor::from_vec(vec![1], vec!["ä".to_owned()]).unwrap()), r#"["ä"]"#);
    }

    #[test]
    fn labels_come_from_indices_before_probabilities() {
        let names = ["low".to_owned(), "high".to_owned()];
        let probabilities = || Tensor::from_vec(vec![2, 2], vec![0.9f32, 0.1, 0.2, 0.8]).unwrap();
        let index = |classes: Vec<i64>| Tensor::from_vec(vec![classes.len()], classes).unwrap();
        let of = |tensors: Vec<(&str, Tensor)>| {
            let outputs: Tensors = tensors.into_iter().collect();
            labels(&names, &outputs).map(|labels| labels.join(" "))
        };
        assert_eq!(of(vec![("p", probabilities())]).as_deref(), Some("low high"));
        assert_eq!(
            of(vec![("p", probabilities()), ("label", index(vec![1, 1]))]).as_deref(),
            Some("high high")
        );
        assert_eq!(of(vec![("label", index(vec![2, -1]))]), None, "no such class");
        let nan = Tensor::from_vec(vec![1, 2], vec![f32::NAN, 1.0]).unwrap();
        assert_eq!(of(vec![("p", nan)]), None);
        assert_eq!(labels(&[], &Tensors::new()), None);
    }
}
