//! aziot-edged's workload API: the trust bundle and signatures, over HTTP on a unix socket or a port.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ring::hmac;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use super::{API_VERSION, DEVICE, GENERATION, HUB_HOST, MODULE, Shared, bag, token};
use crate::process::Failure;

/// The versions that aziot-edged knows.
const VERSIONS: [&str; 7] =
    ["2018-06-28", "2019-01-30", "2019-10-22", "2019-11-05", "2020-07-07", "2021-12-07", API_VERSION];

/// How long a body may take to come.
const BODY: Duration = Duration::from_secs(5);

/// Where the API listens.
pub(super) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// An answer that is not 200.
struct Refused(StatusCode, Failure);

/// Answers until it is stopped; connections end then, too.
pub(super) async fn listen(listener: Listener, bundle: String, shared: Arc<Shared>, stop: CancellationToken) {
    let bundle: Arc<str> = bundle.into();
    loop {
        let (bundle, shared, stop) = (bundle.clone(), shared.clone(), stop.clone());
        tokio::select! {
            () = stop.cancelled() => return,
            stream = accept(&listener) => {
                if let Some(stream) = stream {
                    tokio::spawn(async move {
                        let service = service_fn(|request| answer(request, &bundle, &shared));
                        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                        tokio::select! {
                            () = stop.cancelled() => {}
                            _ = connection => {}
                        }
                    });
                }
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

async fn accept(listener: &Listener) -> Option<Box<dyn Stream>> {
    match listener {
        Listener::Unix(listener) => Some(Box::new(listener.accept().await.ok()?.0)),
        Listener::Tcp(listener) => Some(Box::new(listener.accept().await.ok()?.0)),
    }
}

async fn answer(
    request: Request<Incoming>,
    bundle: &str,
    shared: &Shared,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let (hangs, status) = shared.with(|hub| {
        *hub.calls.entry(name.clone()).or_default() += 1;
        (hub.faults.workload_hangs, hub.faults.workload_status)
    });
    if hangs {
        std::future::pending::<()>().await;
    }
    let outcome = match status.and_then(|status| StatusCode::from_u16(status).ok()) {
        Some(status) => Err(Refused(status, "the key service is in trouble".to_owned())),
        None => respond(request, bundle, shared).await.inspect_err(|Refused(status, why)| {
            shared.with(|hub| hub.violations.push(format!("workload API, {name}: {status}: {why}")));
        }),
    };
    let (status, body) = match outcome {
        Ok(body) => (StatusCode::OK, body),
        Err(Refused(status, message)) => (status, json!({ "message": message })),
    };
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn respond(request: Request<Incoming>, bundle: &str, shared: &Shared) -> Result<Value, Refused> {
    let refused = |status, why: &str| Err(Refused(status, why.to_owned()));
    let query = request.uri().query().unwrap_or_default();
    let version = query.split('&').find_map(|pair| pair.strip_prefix("api-version="));
    match version {
        None => return refused(StatusCode::BAD_REQUEST, "api-version not specified"),
        Some(version) if !VERSIONS.contains(&version) => {
            return refused(StatusCode::BAD_REQUEST, &format!("invalid api-version \"{version}\""));
        }
        Some(_) => {}
    }
    let path = request.uri().path().to_owned();
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (is_get, is_post) = (request.method() == Method::GET, request.method() == Method::POST);
    match segments[..] {
        ["trust-bundle"] if is_get => Ok(json!({ "certificate": bundle })),
        ["modules", module, "genid", generation, "sign"] if is_post => {
            let named = [module, generation].map(|segment| {
                let is_escaped = bag::unescaped(segment).is_none();
                bag::unescape(segment).ok().filter(|_| is_escaped)
            });
            if named != [Some(MODULE.to_owned()), Some(GENERATION.to_owned())] {
                return refused(StatusCode::FORBIDDEN, "forbidden");
            }
            let body = body(request).await?;
            sign(&body, shared)
        }
        ["trust-bundle"] | ["modules", _, "genid", _, "sign"] => {
            refused(StatusCode::BAD_REQUEST, "wrong method")
        }
        _ => refused(StatusCode::NOT_FOUND, "not found"),
    }
}

async fn body(request: Request<Incoming>) -> Result<Value, Refused> {
    let kind = request.headers().get(CONTENT_TYPE).map(|kind| kind.as_bytes());
    if kind.is_some_and(|kind| kind != b"application/json") {
        return Err(Refused(StatusCode::BAD_REQUEST, "missing body".to_owned()));
    }
    let late = |why| Refused(StatusCode::REQUEST_TIMEOUT, why);
    let body = tokio::time::timeout(BODY, request.into_body().collect()).await;
    let body = body.map_err(|_| late(format!("no body within {BODY:?}")))?;
    let body = body.map_err(|error| late(error.to_string()))?.to_bytes();
    if body.is_empty() {
        return Err(Refused(StatusCode::BAD_REQUEST, "missing body".to_owned()));
    }
    serde_json::from_slice(&body)
        .map_err(|error| Refused(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))
}

fn sign(body: &Value, shared: &Shared) -> Result<Value, Refused> {
    let text = |key: &str| body[key].as_str().unwrap_or_default();
    if body["data"].as_str().is_none() {
        return Err(Refused(StatusCode::UNPROCESSABLE_ENTITY, "missing field `data`".to_owned()));
    }
    let data = STANDARD.decode(text("data"));
    let data = data.map_err(|error| Refused(StatusCode::BAD_REQUEST, format!("data: {error}")))?;
    shared.with(|hub| {
        // The daemon reads the data alone; its description asks for the others.
        if (text("keyId"), text("algo")) != ("primary", "HMACSHA256") {
            hub.violations.push(format!("workload API, sign: {body}"));
        }
        let signed = String::from_utf8_lossy(&data).into_owned();
        let audience = bag::escape(&token::audience_of(HUB_HOST));
        let end = signed.strip_prefix(&audience).and_then(|rest| rest.strip_prefix('\n'));
        if end.is_none_or(|end| end.parse::<u64>().is_err()) {
            hub.violations.push(format!("workload API, sign: {signed:?} of {DEVICE}/{MODULE}"));
        }
        hub.signed.push(signed);
        Ok(json!({ "digest": STANDARD.encode(hmac::sign(&hub.key, &data)) }))
    })
}
