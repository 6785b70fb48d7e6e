//! A model at a server of the Open Inference Protocol, and one request to it.

use std::time::Duration;

use axum::http::{Method, Request, Uri, header};
use bytes::Bytes;
use engine::signature::MAX_ZEROS;
use engine::{Data, DataType, Tensor, binary, json};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Longest that a server may take to be reached, and for an answer: as long as the agent itself gives a score by default.
const PATIENCE: Duration = Duration::from_secs(60);

/// Largest answer that is read: that of a segmented picture, many times.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Where a model answers.
pub(super) struct Endpoint {
    host: String,
    port: u16,
    path: String,
    key: Option<String>,
}

/// A request that is sent over and over. Cheap to clone.
#[derive(Clone)]
pub(super) struct Call {
    host: String,
    port: u16,
    path: String,
    key: Option<String>,
    body: Bytes,
    json_length: Option<usize>,
}

/// A connection that is kept.
pub(super) struct Connection(SendRequest<Full<Bytes>>);

#[derive(Deserialize)]
struct Metadata {
    inputs: Vec<Input>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    datatype: String,
    shape: Vec<i64>,
}

impl Endpoint {
    /// Of a model at `url`, and the key that callers need there, if any.
    pub(super) fn of(
        url: &str,
        model: &str,
        version: Option<&str>,
        key: Option<String>,
    ) -> Result<Self, String> {
        let wrong = || "expected http://HOST[:PORT]".to_owned();
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(wrong)?;
        let base = uri.path().trim_end_matches('/');
        let version = version.map(|version| format!("/versions/{version}")).unwrap_or_default();
        let path = format!("{base}/v2/models/{model}{version}");
        // An address of IPv6 stands in brackets in a URL, and there alone.
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Self { host, port: uri.port_u16().unwrap_or(80), path, key })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// A request of this body.
    pub(super) fn call_with(&self, body: Bytes, json_length: Option<usize>) -> Call {
        let path = format!("{}/infer", self.path);
        let (host, key) = (self.host.clone(), self.key.clone());
        Call { host, port: self.port, path, key, body, json_length }
    }

    /// A request for what the server says that the model takes, with `rows` of it. Its numbers are halves, for zeros are
    /// quicker to write and read than what is measured in the field.
    pub(super) async fn call(&self, rows: usize, as_bytes: bool) -> Result<Call, String> {
        let ask = Call { path: self.path.clone(), ..self.call_with(Bytes::new(), None) };
        let (status, body) = ask.connect().await?.send(&ask, Method::GET).await?;
        if status != 200 {
            return Err(format!("GET {}: {status}: {}", self.path, String::from_utf8_lossy(&body)));
        }
        let metadata: Metadata =
            serde_json::from_slice(&body).map_err(|error| format!("GET {}: {error}", self.path))?;
        let (mut inputs, mut blobs) = (Vec::new(), Vec::new());
        for input in &metadata.inputs {
            let tensor = made_up(input, rows)?;
            inputs.push(if as_bytes {
                let before = blobs.len();
                binary::write(&tensor, &mut blobs);
                let parameters = json!({ "binary_data_size": blobs.len() - before });
                json!({ "name": input.name, "shape": tensor.shape(), "datatype": input.datatype, "parameters": parameters })
            } else {
                serde_json::to_value(json::write(&input.name, &tensor)).map_err(|error| error.to_string())?
            });
        }
        let mut request = json!({ "inputs": inputs });
        if as_bytes && let Some(request) = request.as_object_mut() {
            request.insert("parameters".to_owned(), json!({ "binary_data_output": true }));
        }
        let mut body = Value::to_string(&request).into_bytes();
        let json_length = as_bytes.then_some(body.len());
        body.extend(blobs);
        Ok(self.call_with(body.into(), json_length))
    }
}

impl Call {
    /// The length of the body.
    pub(super) fn bytes(&self) -> usize {
        self.body.len()
    }

    pub(super) async fn connect(&self) -> Result<Connection, String> {
        let wrong =
            |error: &dyn std::fmt::Display| format!("connecting: {error}; does a server listen there?");
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let connected = tokio::time::timeout(PATIENCE, connecting).await.map_err(|error| wrong(&error))?;
        let stream = connected.map_err(|error| wrong(&error))?;
        stream.set_nodelay(true).map_err(|error| wrong(&error))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| wrong(&error))?;
        // It ends with its sender, and what it ended of shows in the request that was under way.
        tokio::spawn(connection);
        Ok(Connection(sender))
    }
}

impl Connection {
    /// Sends a request, and reads its answer to the end; gives status and body.
    pub(super) async fn send(&mut self, call: &Call, method: Method) -> Result<(u16, Bytes), String> {
        let mut request = Request::builder().method(method).uri(&call.path);
        request = request.header(header::HOST, format!("{}:{}", call.host, call.port));
        request = match call.json_length {
            None => request.header(header::CONTENT_TYPE, "application/json"),
            Some(length) => request
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header("inference-header-content-length", length),
        };
        if let Some(key) = &call.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(call.body.clone())).map_err(|error| error.to_string())?;
        let asking = async {
            let answer = self.0.send_request(request).await.map_err(|error| error.to_string())?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
            Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
        };
        let asked = tokio::time::timeout(PATIENCE, asking).await;
        asked.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
    }
}

fn made_up(input: &Input, rows: usize) -> Result<Tensor, String> {
    let wrong = |why: &str| format!("input `{}` {why}: give a request by --input", input.name);
    let data_type = DataType::from_oip_name(&input.datatype).ok_or_else(|| wrong("is of an unknown type"))?;
    let length = |(place, length): (usize, &i64)| match usize::try_from(*length) {
        Ok(length) => length,
        Err(_) if place == 0 => rows,
        Err(_) => 1,
    };
    let shape: Vec<usize> = input.shape.iter().enumerate().map(length).collect();
    let elements = engine::tensor::elements(&shape).ok().filter(|elements| *elements <= MAX_ZEROS);
    let elements = elements.ok_or_else(|| wrong("is too large"))?;
    let data = match data_type {
        DataType::F32 => Data::F32((0..elements).map(|place| (place % 1000) as f32 / 1024.0).collect()),
        DataType::F64 => Data::F64((0..elements).map(|place| (place % 1000) as f64 / 1024.0).collect()),
        other => Data::zeros(other, elements),
    };
    Tensor::new(shape, data).map_err(|error| error.to_string())
}
