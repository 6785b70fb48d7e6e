//! What goes wrong with a request: a status and one line, in the JSON that the caller's protocol knows.

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cloud_sync::limits::bounded_text;
use engine::ScoreError;

use crate::body::BodyError;
use crate::scorer::ScoreRefused;

/// When a caller that was refused for want of room shall come again: a queue is empty well within a second.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// A request that has no answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    line: String,
    closes: bool,
}

impl Failure {
    pub(super) fn new(status: StatusCode, line: impl Into<String>) -> Self {
        let line = bounded_text(line).replace(['\n', '\r'], " ");
        Self { status, line, closes: false }
    }

    /// Also ends the connection, and says so: the request's body was not read to its end, so no other can follow.
    pub(super) fn closing(self) -> Self {
        Self { closes: true, ..self }
    }

    pub(super) fn bad_request(line: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, line)
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "a key is needed: send `authorization: Bearer KEY`")
    }

    pub(super) fn not_found(line: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, line)
    }

    pub(super) fn method(method: &Method, path: &str) -> Self {
        let line = format!("{method} is not answered at {path}; see the header `allow`");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, line)
    }

    pub(super) fn internal(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }

    /// What went wrong.
    pub(super) fn line(&self) -> &str {
        &self.line
    }

    /// As the Open Inference Protocol says it.
    pub(super) fn as_error(&self) -> Response {
        self.answer("error")
    }

    /// As Azure ML says it.
    pub(super) fn as_message(&self) -> Response {
        self.answer("message")
    }

    fn answer(&self, key: &str) -> Response {
        let body = serde_json::json!({ key: self.line }).to_string();
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.closes {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// In the Open Inference Protocol an error without an answer is the error.
impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        self.as_error()
    }
}

impl From<ScoreRefused> for Failure {
    fn from(refused: ScoreRefused) -> Self {
        let status = match &refused {
            ScoreRefused::UnknownModel(..) | ScoreRefused::UnknownVersion { .. } => StatusCode::NOT_FOUND,
            ScoreRefused::Busy(..) | ScoreRefused::Timeout(_) | ScoreRefused::Stopping(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ScoreRefused::Score(ScoreError::BadInput(_)) => StatusCode::BAD_REQUEST,
            ScoreRefused::Score(ScoreError::Engine { .. }) | ScoreRefused::Crashed(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self::new(status, refused.to_string())
    }
}

impl From<BodyError> for Failure {
    fn from(error: BodyError) -> Self {
        Self::bad_request(error.to_string())
    }
}
