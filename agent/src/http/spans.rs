//! What the span of a request over HTTP or gRPC tells, by OpenTelemetry's names.

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, Method, Uri};
use axum::response::Response;
use cloud_sync::limits::bounded_text;
use tonic::Code;

use super::grpc;
use crate::trace::{Kind, Parent, Span, Tracer, Value};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Begins the span of a request, if it is to be traced.
pub(super) fn begin(tracer: &Tracer, request: &Request) -> Option<Span> {
    let mut span = tracer.begin(Kind::Server, || parent(request.headers()))?;
    let text = |text: &str| Value::Text(text.to_owned());
    let path = request.uri().path();
    if let Some(method) = called(request.uri()) {
        let service = grpc::SERVICE.trim_matches('/');
        let method = bounded_text(method);
        span.name(format!("{service}/{method}"));
        span.set("rpc.system", text("grpc"));
        span.set("rpc.service", text(service));
        span.set("rpc.method", Value::Text(method));
        return Some(span);
    }
    let method = match *request.method() {
        Method::GET
        | Method::POST
        | Method::HEAD
        | Method::OPTIONS
        | Method::PUT
        | Method::PATCH
        | Method::DELETE
        | Method::CONNECT
        | Method::TRACE => request.method().as_str(),
        _ => "_OTHER",
    };
    span.set("http.request.method", text(method));
    span.set("url.path", Value::Text(bounded_text(path)));
    match request.extensions().get::<MatchedPath>() {
        Some(route) => {
            span.name(format!("{method} {}", route.as_str()));
            span.set("http.route", text(route.as_str()));
        }
        None => span.name(method.to_owned()),
    }
    Some(span)
}

/// Ends it with the answer.
pub(super) fn end(span: &mut Span, uri: &Uri, response: &Response) {
    if let Some(code) = grpc::code(uri, response) {
        span.set("rpc.grpc.status_code", Value::Number(code as u64));
        let ours = [
            Code::Unknown,
            Code::DeadlineExceeded,
            Code::Unimplemented,
            Code::Internal,
            Code::Unavailable,
            Code::DataLoss,
        ];
        return span.end(ours.contains(&code).then(|| code.description().to_owned()));
    }
    let status = response.status();
    span.set("http.response.status_code", Value::Number(status.as_u16().into()));
    // A caller's mistake is no error of the server's.
    span.end(status.is_server_error().then(|| status.to_string()));
}

/// The method that is called over gRPC.
fn called(uri: &Uri) -> Option<&str> {
    uri.path().strip_prefix(grpc::SERVICE)
}

fn parent(headers: &HeaderMap) -> Option<Parent> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let parent = parents.next()?.to_str().ok()?;
    let states = headers.get_all(TRACESTATE).iter().filter_map(|state| state.to_str().ok());
    // Of two it can't be told which one is meant.
    parents.next().is_none().then(|| Parent::read(parent, &states.collect::<Vec<_>>().join(",")))?
}
