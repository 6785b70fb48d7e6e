//! Errors as RFC 9457 problem details, and requests that can't be read.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;

use crate::api::{Holder, Problem};
use crate::error::RegistryError;

/// A JSON body; one that can't be read is a problem.
pub(super) struct Body<T>(pub(super) T);

/// A query; one that can't be read is a problem.
pub(super) struct Asked<T>(pub(super) T);

/// A problem that no [`RegistryError`] stands for.
pub(super) fn response(status: StatusCode, code: &str, detail: &str) -> Response {
    problem(status, code, detail.to_owned(), Vec::new())
}

impl IntoResponse for RegistryError {
    fn into_response(self) -> Response {
        let detail = self.to_string();
        let (status, code) = match &self {
            Self::Invalid(_) => (StatusCode::BAD_REQUEST, "Invalid"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "NotFound"),
            Self::Conflict(_) => (StatusCode::CONFLICT, "Conflict"),
            Self::InUse { .. } => (StatusCode::PRECONDITION_FAILED, "DeletionRequired"),
            Self::Refused(_) => (StatusCode::UNPROCESSABLE_ENTITY, "Refused"),
            Self::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "TooLarge"),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "Unavailable"),
            Self::Timeout(_) => (StatusCode::GATEWAY_TIMEOUT, "Timeout"),
            Self::Internal(_) => {
                tracing::error!(error = %detail, "a request failed");
                (StatusCode::INTERNAL_SERVER_ERROR, "Internal")
            }
        };
        let holders = if let Self::InUse { holders, .. } = self { holders } else { Vec::new() };
        problem(status, code, detail, holders)
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = RegistryError;

    async fn from_request(request: Request, state: &S) -> Result<Self, RegistryError> {
        let body: Result<Json<T>, JsonRejection> = Json::from_request(request, state).await;
        match body {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(RegistryError::TooLarge(rejection.body_text()))
            }
            Err(rejection) => Err(RegistryError::Invalid(rejection.body_text())),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = RegistryError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, RegistryError> {
        let query: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        query
            .map(|Query(asked)| Self(asked))
            .map_err(|rejection| RegistryError::Invalid(rejection.body_text()))
    }
}

fn problem(status: StatusCode, code: &str, detail: String, holders: Vec<Holder>) -> Response {
    let body = Problem {
        kind: "about:blank".to_owned(),
        title: status.canonical_reason().unwrap_or("error").to_owned(),
        status: status.as_u16(),
        detail,
        code: code.to_owned(),
        holders,
    };
    (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(body)).into_response()
}
