//! From a JSON body to the tensors of a model.
//!
//! What a body may be, for a model with inputs `a` and `b`, or with one input only:
//! - `{"inputs": [{"name", "shape", "datatype", "data"}, …]}`, as in the Open Inference Protocol;
//! - `{"data": [{"a": 1, "b": [2, 3]}, …]}`: a list of rows, each with a value for every input;
//! - `{"data": [[1, 2], …]}`: the only input, whole or one row of it; `inputs` stands for `data` here too;
//! - `{"a": …, "b": …}`, alone or under `data`: each input, whole or one row of it; alone, as a sensor sends it,
//!   fields that are no inputs are passed over;
//! - `[…]`: as under `data`.
//!
//! A value is an input's whole tensor where its nesting fits the input's shape, else one row of it, else a list of
//! rows of one element. What fits none of these is refused in the words of the signature.
//!
//! Invariant: elements go straight into typed lists of bounded length, never into a tree of JSON values, so that a
//! body takes a small multiple of its own size while it is read.

use engine::json::{self, Cursor, CursorError, Elements, JsonError, JsonTensor, Next};
use engine::{InputError, Signature, Tensor, TensorSpec, Tensors};

use crate::trace::MAX_TRACEPARENT;

/// Most fields of a body that are looked at: a model has a few inputs, and bodies a few fields beside them.
const MAX_FIELDS: usize = 256;

/// Longest id that is taken from a body, in bytes: it goes into every captured row.
pub(crate) const MAX_ID_BYTES: usize = 100;

/// What a body says.
#[derive(Debug, Clone, PartialEq)]
pub struct Body {
    /// The inputs, by the names of the signature. Their shapes are not checked yet: scoring does.
    pub inputs: Tensors,
    /// Its field `id`, where it has one that is a text of at most 100 bytes and no input.
    pub id: Option<String>,
    /// Its field `traceparent`, where it has one that is a text as long as W3C Trace Context has it, and no input: MQTT 3.1.1
    /// has no place for it beside the body.
    pub traceparent: Option<String>,
}

/// Why a body can't be read. All are the sender's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// It is no JSON, or not of the form that its place asks for.
    #[error("the body can't be read: {0}")]
    Json(#[from] CursorError),
    /// A request of the Open Inference Protocol that can't be served.
    #[error("{0}")]
    Request(String),
    /// A tensor is wrong in itself.
    #[error(transparent)]
    Tensor(#[from] JsonError),
    /// An input is missing, unknown, or of the wrong shape.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Plain lists can't say which input they are for.
    #[error(
        "the model takes several inputs ({0}): send {{\"data\": [{{\"NAME\": VALUE, …}}, …]}} or an \
         Open Inference Protocol body"
    )]
    SeveralInputs(String),
    /// Nothing in the body is an input.
    #[error("the body has neither `data` nor `inputs` nor a field for every input ({0})")]
    NoInput(String),
}

/// Reads a body for a model of this signature.
///
/// # Errors
/// See [`BodyError`].
pub fn read(body: &[u8], signature: &Signature) -> Result<Body, BodyError> {
    let mut cursor = Cursor::new(body);
    if cursor.ahead()? != Next::Object {
        let inputs = rows(&mut cursor, signature)?;
        cursor.end()?;
        return Ok(Body { inputs, id: None, traceparent: None });
    }
    let is_input = |name: &str| signature.inputs.iter().any(|spec| spec.name == name);
    let known = ["id", "traceparent", "inputs", "data"];
    let fields = fields(&mut cursor, |name| is_input(name) || known.contains(&name))?;
    cursor.end()?;
    let field = |name: &str| fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let text = |name: &str, longest: usize| {
        let text = field(name).filter(|_| !is_input(name)).and_then(|mut text| text.value().ok());
        text.filter(|text: &String| text.len() <= longest)
    };
    let (id, traceparent) = (text("id", MAX_ID_BYTES), text("traceparent", MAX_TRACEPARENT));
    // A model of several inputs may call one of them `data` or `inputs`.
    let means_rows = |name: &str| !(is_input(name) && signature.inputs.len() > 1);
    let inputs = match (field("inputs"), field("data")) {
        (Some(list), _) if list.opens_rows() && means_rows("inputs") => tensors_or_rows(&list, signature)?,
        (Some(mut value), _) if means_rows("inputs") => rows(&mut value, signature)?,
        (_, Some(mut value)) if means_rows("data") => rows(&mut value, signature)?,
        _ => {
            let given: Vec<_> = fields.into_iter().filter(|(name, _)| is_input(name)).collect();
            if given.is_empty() {
                return Err(BodyError::NoInput(names(signature)));
            }
            columns(given, signature)?
        }
    };
    Ok(Body { inputs, id, traceparent })
}

/// `[{…}, …]` under `inputs`: tensors of the protocol, unless the objects are rows by the inputs' names.
fn tensors_or_rows(list: &Cursor<'_>, signature: &Signature) -> Result<Tensors, BodyError> {
    let mut tensors = Vec::new();
    let read = list.clone().list(|cursor| {
        tensors.push(JsonTensor::read(cursor)?);
        Ok::<_, BodyError>(())
    });
    match read {
        Ok(()) => Ok(json::read_all(tensors)?),
        Err(error) => rows(&mut list.clone(), signature).map_err(|_| error),
    }
}

/// What stands under `data`.
fn rows(value: &mut Cursor<'_>, signature: &Signature) -> Result<Tensors, BodyError> {
    if value.ahead()? == Next::Object {
        return columns(fields(value, |_| true)?, signature);
    }
    if value.opens_rows() {
        return dictionary_rows(value, signature);
    }
    let [spec] = signature.inputs.as_slice() else {
        return Err(BodyError::SeveralInputs(names(signature)));
    };
    let tensor = tensor(spec, elements(spec, value)?)?;
    Ok([(spec.name.as_str(), tensor)].into_iter().collect())
}

/// Each input by its name, whole or one row of it.
fn columns(fields: Vec<(String, Cursor<'_>)>, signature: &Signature) -> Result<Tensors, BodyError> {
    let read = |(name, mut value): (String, Cursor<'_>)| {
        let spec = spec(signature, &name)?;
        Ok((name, tensor(spec, elements(spec, &mut value)?)?))
    };
    fields.into_iter().map(read).collect()
}

/// A list of rows, each with a value for every input.
fn dictionary_rows(list: &mut Cursor<'_>, signature: &Signature) -> Result<Tensors, BodyError> {
    let mut columns: Vec<_> =
        signature.inputs.iter().map(|spec| (spec, Elements::new(spec.data_type))).collect();
    let mut seen = vec![false; columns.len()];
    let mut position = 0usize;
    list.list(|row| {
        let wrong = |row: &Cursor<'_>, name: &str, what: &str| {
            row.wrong(&format!("row {position} {what} `{}`", brief(name)))
        };
        if row.ahead()? != Next::Object {
            return Err(BodyError::from(row.wrong(&format!("row {position} is no object like the others"))));
        }
        seen.fill(false);
        row.object(|name, row| {
            let mut places = columns.iter_mut().zip(&mut seen);
            match places.find(|((spec, _), _)| spec.name == name) {
                Some((_, seen)) if *seen => Err(wrong(row, name, "has twice").into()),
                Some(((spec, column), seen)) => {
                    *seen = true;
                    let value = row.clone();
                    column.read_row(row).map_err(|error| wrong_elements(spec, value, error))
                }
                None => Err(wrong(row, name, "has a value for the unknown input").into()),
            }
        })?;
        if let Some(((spec, _), _)) = columns.iter().zip(&seen).find(|(_, seen)| !**seen) {
            return Err(wrong(row, &spec.name, "has no value for input").into());
        }
        position += 1;
        Ok(())
    })?;
    columns.into_iter().map(|(spec, column)| Ok((spec.name.clone(), tensor(spec, column)?))).collect()
}

fn elements(spec: &TensorSpec, value: &mut Cursor<'_>) -> Result<Elements, BodyError> {
    let mut elements = Elements::new(spec.data_type);
    let whole = value.clone();
    elements.read(value).map_err(|error| wrong_elements(spec, whole, error)).map(|()| elements)
}

/// What is no JSON is the body's mistake, what is no value of the input that of the input.
fn wrong_elements(spec: &TensorSpec, mut value: Cursor<'_>, error: CursorError) -> BodyError {
    match value.skip() {
        Ok(()) => JsonError { tensor: spec.name.clone(), why: error.to_string() }.into(),
        Err(_) => error.into(),
    }
}

/// The tensor that a value stands for, by its nesting.
fn tensor(spec: &TensorSpec, elements: Elements) -> Result<Tensor, BodyError> {
    let nesting = elements.nesting();
    let shape = fit(&spec.shape, &nesting).ok_or_else(|| InputError::Shape {
        input: spec.name.clone(),
        given: nesting,
        expected: spec.kind(),
    })?;
    Ok(elements.into_tensor(&spec.name, shape)?)
}

/// The shape that lists of such lengths stand for: as it is, one row, or rows of one element.
fn fit(shape: &[Option<usize>], nesting: &[usize]) -> Option<Vec<usize>> {
    let missing = shape.len().checked_sub(nesting.len())?;
    (0..=missing).rev().find_map(|before| {
        let ones = |count| std::iter::repeat_n(1, count);
        let whole: Vec<usize> =
            ones(before).chain(nesting.iter().copied()).chain(ones(missing - before)).collect();
        let fits = whole.iter().zip(shape).all(|(given, length)| length.is_none_or(|l| l == *given));
        fits.then_some(whole)
    })
}

fn spec<'a>(signature: &'a Signature, name: &str) -> Result<&'a TensorSpec, InputError> {
    let found = signature.inputs.iter().find(|spec| spec.name == name);
    found.ok_or_else(|| InputError::Unknown { input: name.to_owned(), known: names(signature) })
}

fn names(signature: &Signature) -> String {
    let names: Vec<String> = signature.inputs.iter().map(|spec| format!("`{}`", spec.name)).collect();
    names.join(", ")
}

/// The fields of an object that are wanted, unread and in order, each name once.
fn fields<'a>(
    object: &mut Cursor<'a>,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<(String, Cursor<'a>)>, BodyError> {
    let mut fields: Vec<(String, Cursor<'a>)> = Vec::new();
    let mut seen = 0usize;
    object.object(|name, cursor| {
        if fields.iter().any(|(known, _)| known == name) {
            return Err(cursor.wrong(&format!("field `{}` is there twice", brief(name))));
        }
        seen += 1;
        if seen > MAX_FIELDS {
            return Err(cursor.wrong(&format!("more than {MAX_FIELDS} fields")));
        }
        if !wanted(name) {
            return cursor.skip();
        }
        fields.push((name.to_owned(), cursor.defer()?));
        Ok(())
    })?;
    Ok(fields)
}

fn brief(name: &str) -> String {
    name.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use engine::DataType;

    use super::*;

    fn signature(inputs: &[(&str, DataType, &[Option<usize>])]) -> Signature {
        let spec = |(name, data_type, shape): &(&str, DataType, &[Option<usize>])| TensorSpec {
            name: (*name).to_owned(),
            data_type: *data_type,
            shape: shape.to_vec(),
        };
        Signature { inputs: inputs.iter().map(spec).collect(), outputs: Vec::new() }
    }

    fn one() -> Signature {
        signature(&[("x", DataType::F32, &[None, Some(2)])])
    }

    fn two() -> Signature {
        signature(&[("a", DataType::F32, &[None, Some(1)]), ("b", DataType::I64, &[None, Some(2)])])
    }

    fn says(body: &str, signature: &Signature) -> String {
        read(body.as_bytes(), signature).unwrap_err().to_string()
    }

    #[test]
    fn every_form_of_one_input_is_the_same_tensor() {
        let expected = Tensor::from_vec(vec![2, 2], vec![1f32, 2.0, 3.0, 4.0]).unwrap();
        for body in [
            r#"[[1,2],[3,4]]"#,
            r#" { "data" : [[1,2],[3,4]], "method": "predict" }"#,
            r#"{"inputs":[[1,2],[3,4]]}"#,
            r#"{"data":[{"x":[1,2]},{"x":[3,4]}]}"#,
            r#"{"data":{"x":[[1,2],[3,4]]}}"#,
            r#"{"x":[[1,2],[3,4]]}"#,
            r#"{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[1,2,3,4]}]}"#,
            r#"{"inputs":[{"x":[1,2]},{"x":[3,4]}]}"#,
        ] {
            let read = read(body.as_bytes(), &one()).unwrap();
            assert_eq!(read.inputs.get("x"), Some(&expected), "{body}");
        }
        let row = read(b"[1,2]", &one()).unwrap().inputs;
        assert_eq!(row.get("x").unwrap().shape(), [1, 2], "one row");
    }

    #[test]
    fn several_inputs_go_by_name() {
        let a = Tensor::from_vec(vec![2, 1], vec![1f32, 2.0]).unwrap();
        let b = Tensor::from_vec(vec![2, 2], vec![1i64, 2, 3, 4]).unwrap();
        for body in [
            r#"{"data":[{"a":1,"b":[1,2]},{"b":[3,4],"a":2.0}]}"#,
            r#"{"data":[{"a":[1],"b":[1,2]},{"b":[3,4],"a":[2]}]}"#,
            r#"{"a":[1,2],"b":[[1,2],[3,4]]}"#,
        ] {
            let read = read(body.as_bytes(), &two()).unwrap().inputs;
            assert_eq!((read.get("a"), read.get("b")), (Some(&a), Some(&b)), "{body}");
        }
        let row = read(br#"{"a":7,"unit":"kW","b":[8,9]}"#, &two()).unwrap().inputs;
        assert_eq!(row.get("a").unwrap().shape(), [1, 1], "a sensor's one row");
        assert_eq!(row.get("b").unwrap().shape(), [1, 2]);
    }

    #[test]
    fn inputs_may_have_the_names_of_fields() {
        let named = signature(&[("data", DataType::F32, &[None]), ("id", DataType::I64, &[None])]);
        let body = read(br#"{"data":[0.5],"id":[7]}"#, &named).unwrap();
        assert_eq!(body.inputs.get("id").unwrap().as_slice(), Some(&[7i64][..]));
        assert_eq!(body.id, None);
        let body = read(br#"{"data":[1,2],"id":"r-1","traceparent":"00-1-2-01"}"#, &one()).unwrap();
        assert_eq!((body.id.as_deref(), body.traceparent.as_deref()), (Some("r-1"), Some("00-1-2-01")));
    }

    #[test]
    fn each_mistake_is_named() {
        assert_eq!(
            says("{}", &one()),
            "the body has neither `data` nor `inputs` nor a field for every input (`x`)"
        );
        assert!(says("", &one()).starts_with("the body can't be read: EOF"));
        assert!(says(r#"{"data":"#, &one()).starts_with("the body can't be read: EOF"));
        assert_eq!(says("[1,2,3]", &one()), "input `x` has shape [3]: expected FP32 [-1, 2]");
        assert_eq!(says("[[[1,2]]]", &one()), "input `x` has shape [1, 1, 2]: expected FP32 [-1, 2]");
        assert!(says("[[1,2],[3]]", &one()).contains("tensor `x`: lists at one depth differ in length"));
        assert!(says("[[1,2],[3", &one()).starts_with("the body can't be read"));
        assert!(says(r#"{"data":[{"a":"x","b":[1,2]}]}"#, &two()).contains(r#"tensor `a`: element 0 ("x")"#));
        assert!(says(r#"[["a","b"]]"#, &one()).contains("is not of type FP32"));
        assert!(says("[[1,2]]", &two()).starts_with("the model takes several inputs (`a`, `b`)"));
        assert!(says(r#"{"data":[{"a":1}]}"#, &two()).contains("row 0 has no value for input `b`"));
        assert!(says(r#"{"data":[{"a":1,"a":1}]}"#, &two()).contains("row 0 has twice `a`"));
        assert!(
            says(r#"{"data":[{"a":1,"b":[1,2]},{"c":1}]}"#, &two())
                .contains("row 1 has a value for the unknown input `c`")
        );
        assert!(says(r#"{"data":[{"a":1,"b":[1,2]},7]}"#, &two()).contains("row 1"));
        assert_eq!(
            says(r#"{"data":{"a":1,"c":2}}"#, &two()),
            "input `c` is unknown: the model takes `a`, `b`"
        );
        assert!(says(r#"{"x":1,"x":2}"#, &one()).contains("field `x` is there twice"));
        assert!(says(r#"{"inputs":[{"name":"x"}]}"#, &one()).contains("missing field `shape`"));
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(says(&deep, &one()).contains("nested deeper"));
        assert!(says(&format!(r#"{{"data":{deep}}}"#), &one()).contains("nested deeper"));
    }
}
