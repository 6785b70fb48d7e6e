//! What is scored and what scores it: JSON bodies, binary tensors, golden samples, ONNX files.

use edgewise_agent::body::{self, Format, Nested};
use engine::{DataType, Signature, Tensor, TensorSpec, Tensors, binary as encoding, golden as samples, json};

pub(super) fn golden(data: &[u8]) {
    let Ok(golden) = samples::parse(data) else { return };
    for sample in &golden.samples {
        sound(&sample.inputs);
        sound(&sample.outputs);
    }
}

pub(super) fn golden_seeds() -> Vec<Vec<u8>> {
    let tensor = r#"{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2.5],[null,-4e3]]}"#;
    let label = r#"{"name":"y","shape":[1],"datatype":"BYTES","data":["low"],"parameters":{}}"#;
    vec![format!(r#"{{"samples":[{{"inputs":[{tensor}],"outputs":[{label},{tensor}]}}]}}"#).into()]
}

/// The first byte says which model the body is for, and by its two highest bits in which form it is.
pub(super) fn score(data: &[u8]) {
    let Some((first, body)) = data.split_first() else { return };
    let format = Format::NAMES.iter().cycle().nth(usize::from(first >> 6)).map(|(_, format)| *format);
    let Ok(read) = format.unwrap_or_default().read(body, &signature(first & 63)) else { return };
    assert!(read.id.is_none_or(|id| id.len() <= 100));
    sound(&read.inputs);
}

pub(super) fn score_seeds() -> Vec<Vec<u8>> {
    let one = [
        r#"[[1,2],[3,4]]"#,
        r#" { "data" : [[1,2],[3,4]], "method": "predict", "id": "r-1" }"#,
        r#"{"data":[{"x":[1,2]},{"x":[3,4]}]}"#,
        r#"{"data":{"x":[[1,2],[3,4]]}}"#,
        r#"{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[1,2,3,4]}]}"#,
    ];
    let two = [
        r#"{"data":[{"a":[1],"b":["l"]},{"b":["h"],"a":[2]}]}"#,
        r#"{"a":7,"unit":"kW","b":["low","high"]}"#,
    ];
    let seed = |model: u8, body: &str| [&[model], body.as_bytes()].concat();
    let text = one.into_iter().map(|body| seed(0, body)).chain(two.into_iter().map(|body| seed(1, body)));
    let cbor = b"\x40\xa1\x64data\x82\x82\x01\xf9\x3c\x00\x82\x03\x04".to_vec();
    let raw = [&[0x80], [1f32.to_le_bytes(); 4].concat().as_slice()].concat();
    text.chain([cbor, raw]).collect()
}

/// The first byte says which model it is for, two more how long the JSON is; bytes follow it.
pub(super) fn infer(data: &[u8]) {
    let Some(([model, low, high], body)) = data.split_first_chunk() else { return };
    let length = usize::from(u16::from_le_bytes([*low, *high]));
    let length = (length != usize::from(u16::MAX)).then_some(length);
    let Ok(read) = body::infer(body, length, &signature(*model)) else { return };
    assert!(read.id.is_none_or(|id| id.len() <= 100));
    sound(&read.inputs);
}

pub(super) fn infer_seeds() -> Vec<Vec<u8>> {
    let json = r#"{"id":"7","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}],"outputs":[{"name":"y","parameters":{"binary_data":true}}]}"#;
    let head = r#"{"parameters":{"binary_data_output":true},"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}"#;
    let blob = [0, 0, 128, 63, 0, 0, 0, 64];
    let length = u16::try_from(head.len()).unwrap_or(u16::MAX).to_le_bytes();
    vec![
        [&[0, 255, 255], json.as_bytes()].concat(),
        [&[0], length.as_slice(), head.as_bytes(), &blob].concat(),
    ]
}

/// The first byte says which model the message of a gRPC call is for.
pub(super) fn call(data: &[u8]) {
    let Some((model, message)) = data.split_first() else { return };
    let Ok(read) = edgewise_agent::http::read_call(message, &signature(*model)) else { return };
    assert!(read.id.is_none_or(|id| id.len() <= 100));
    sound(&read.inputs);
}

/// Fields are a key, a length and that many bytes: `key` is the number shifted by three, with 2 for lengths.
pub(super) fn call_seeds() -> Vec<Vec<u8>> {
    let field = |number: u8, bytes: &[u8]| {
        let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
        [&[number << 3 | 2, length], bytes].concat()
    };
    let tensor = |more: Vec<u8>| {
        let shape = field(3, &[1, 2]);
        field(5, &[field(1, b"x"), field(2, b"FP32"), shape, more].concat())
    };
    let floats = [0, 0, 128, 63, 0, 0, 0, 64];
    let wanted = field(6, &field(1, b"y"));
    let typed = [field(1, b"m"), field(3, b"7"), tensor(field(5, &field(6, &floats))), wanted].concat();
    let raw = [field(1, b"m"), tensor(Vec::new()), field(7, &floats)].concat();
    vec![[&[0], typed.as_slice()].concat(), [&[0], raw.as_slice()].concat()]
}

/// The first byte is the type, the second the rank; a length of 8 bytes for each dimension follows, then the elements.
pub(super) fn binary(data: &[u8]) {
    let Some(([kind, rank], mut rest)) = data.split_first_chunk() else { return };
    let Some(data_type) = DataType::ALL.get(usize::from(*kind) % DataType::ALL.len()) else { return };
    let mut shape = Vec::new();
    for _ in 0..rank % 8 {
        let Some((length, after)) = rest.split_first_chunk() else { return };
        shape.push(usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX));
        rest = after;
    }
    let Ok(tensor) = encoding::read(*data_type, shape, rest) else { return };
    let mut written = Vec::new();
    encoding::write(&tensor, &mut written);
    // Any byte but 0 is true.
    assert!(written == rest || *data_type == DataType::Bool);
    sound(&[("x", tensor)].into_iter().collect());
}

pub(super) fn binary_seeds() -> Vec<Vec<u8>> {
    let two = 2u64.to_le_bytes();
    let texts = b"\x02\0\0\0ab\0\0\0\0";
    let text = DataType::ALL.iter().position(|kind| *kind == DataType::String).unwrap_or(0);
    vec![
        [&[0, 1], two.as_slice(), &[0; 8]].concat(),
        [&[u8::try_from(text).unwrap_or(0), 1], two.as_slice(), texts].concat(),
    ]
}

pub(super) fn onnx(data: &[u8]) {
    let Ok(signature) = engine::signature_of(data) else { return };
    assert!(signature.outputs.len() + signature.inputs.len() <= data.len());
    let _ = signature.batch_dimension();
}

/// Small files, written by hand: numbers of fields are those of `onnx.proto3`.
pub(super) fn onnx_seeds() -> Vec<Vec<u8>> {
    let dimension = |length: u8| field(1, &[&[0x08, length]]);
    let value = |name: &str, kind: u8| {
        let shape = field(2, &[&field(1, &[&field(2, &[b"N"])]), &dimension(3)]);
        let tensor = field(1, &[&[0x08, kind], &shape]);
        [field(1, &[name.as_bytes()]), field(2, &[&tensor])].concat()
    };
    let labels = [field(1, &[b"classlabels_int64s"]), vec![0x40, 0, 0x40, 1, 0x40, 2]].concat();
    let node = |operator: &str, domain: &str, input: &str, output: &str, attribute: &[u8]| {
        let names = [field(1, &[input.as_bytes()]), field(2, &[output.as_bytes()])].concat();
        let rest = [field(4, &[operator.as_bytes()]), field(5, &[attribute]), field(7, &[domain.as_bytes()])];
        [names, rest.concat()].concat()
    };
    let weight = [vec![0x08, 3, 0x10, 1], field(8, &[b"w"]), field(9, &[&[0; 12]])].concat();
    let inner = field(6, &[&field(1, &[&node("Relu", "", "x", "z", &[])])]);
    let file = |nodes: &[Vec<u8>]| {
        let nodes: Vec<u8> = nodes.iter().flat_map(|node| field(1, &[node])).collect();
        let graph = [nodes, field(5, &[&weight]), field(11, &[&value("x", 1)]), field(12, &[&value("y", 1)])]
            .concat();
        let opset = |domain: &[u8], version: u8| field(8, &[&field(1, &[domain]), &[0x10, version]]);
        [vec![0x08, 8], field(7, &[&graph]), opset(b"", 17), opset(b"ai.onnx.ml", 3)].concat()
    };
    vec![
        file(&[node("Add", "", "x", "y", &[])]),
        file(&[node("Softmax", "", "x", "p", &[]), node("ZipMap", "ai.onnx.ml", "p", "y", &labels)]),
        file(&[node("If", "", "x", "y", &[field(1, &[b"then_branch"]), inner].concat())]),
    ]
}

/// A field of an encoded message that holds bytes.
fn field(number: u8, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length > 0x7f {
        bytes.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap_or(0));
    [bytes, content].concat()
}

/// Tensors that were taken can be shown, and take no more to show than they hold.
fn sound(tensors: &Tensors) {
    for (name, tensor) in tensors.iter() {
        let shown = serde_json::to_vec(&Nested(tensor)).unwrap_or_default();
        assert!(shown.len() <= (1 << 20) + 512 * (tensor.len() + 1) + 8 * text_bytes(tensor));
        let flat = serde_json::to_vec(&json::write(name, tensor)).unwrap_or_default();
        let read = serde_json::from_slice::<json::JsonTensor>(&flat).ok().map(json::JsonTensor::into_tensor);
        let Some(Ok((_, read))) = read else { unread(tensor) };
        assert_eq!((read.shape(), read.data_type()), (tensor.shape(), tensor.data_type()));
    }
}

/// # Panics
/// Always: a tensor that was written by ourselves is not read.
#[expect(clippy::panic, reason = "this is the finding")]
fn unread(tensor: &Tensor) -> ! {
    panic!("a tensor of {} {:?} does not come back", tensor.data_type(), tensor.shape())
}

fn text_bytes(tensor: &Tensor) -> usize {
    tensor.as_slice::<String>().map_or(0, |texts| texts.iter().map(String::len).sum())
}

fn signature(model: u8) -> Signature {
    let spec = |name: &str, data_type, shape: &[Option<usize>]| TensorSpec {
        name: name.to_owned(),
        data_type,
        shape: shape.to_vec(),
    };
    let inputs = match model % 3 {
        0 => vec![spec("x", DataType::F32, &[None, Some(2)])],
        1 => vec![spec("a", DataType::I64, &[None, Some(1)]), spec("b", DataType::String, &[None, Some(1)])],
        _ => vec![spec("x", DataType::F16, &[None, None, None])],
    };
    Signature { inputs, outputs: vec![spec("y", DataType::F32, &[None])] }
}
