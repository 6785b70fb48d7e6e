//! The command line's way to a registry: its HTTP API, blocking.

use std::io::{self, BufWriter, Read};
use std::time::Duration;

use cloud_sync::bundle::{Bundle, BundleError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Agent, Body, RequestBuilder, SendBody};

use crate::api::{Problem, Registered};
use crate::cli::CliError;

/// Longest wait for a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for an answer that needs records only. The registry itself gives up earlier.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest silence of a registry that proves a bundle: large models take minutes to load on small machines.
const PROOF_TIMEOUT: Duration = Duration::from_secs(1800);

/// Largest answer that is read whole.
const MAX_ANSWER_BYTES: u64 = 64 * 1024 * 1024;

/// A registry.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    url: String,
    token: Option<String>,
}

impl Client {
    /// The registry at `url`.
    pub fn new(url: &str, token: Option<&str>) -> Self {
        let config = Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .http_status_as_error(false)
            .user_agent(concat!("edgewise/", env!("CARGO_PKG_VERSION")))
            .build();
        let token = token.map(|token| format!("Bearer {}", token.trim()));
        Self { agent: config.new_agent(), url: url.trim_end_matches('/').to_owned(), token }
    }

    /// Reads something.
    pub fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<T, CliError> {
        json(self.open(path, query, Some(ANSWER_TIMEOUT))?)
    }

    /// Begins to read something large.
    pub fn download(&self, path: &str, query: &[(&str, String)]) -> Result<impl Read + use<>, CliError> {
        Ok(self.open(path, query, None)?.into_body().into_reader())
    }

    /// Sends a body with POST, and waits up to `timeout` beyond the usual for the answer.
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        timeout: Duration,
    ) -> Result<T, CliError> {
        let request = self.authorized(self.agent.post(self.address(path))).config();
        let request = request.timeout_global(Some(ANSWER_TIMEOUT + timeout)).build();
        json(self.checked(request.content_type("application/json").send(encoded(body)?))?)
    }

    /// Sends a body with PATCH.
    pub fn patch<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, CliError> {
        let request = self.authorized(self.agent.patch(self.address(path))).config();
        let request = request.timeout_global(Some(ANSWER_TIMEOUT)).build();
        json(self.checked(request.content_type("application/json").send(encoded(body)?))?)
    }

    /// Deletes something; the answer's body, if it has one.
    pub fn delete(&self, path: &str, query: &[(&str, String)]) -> Result<Vec<u8>, CliError> {
        let request =
            self.authorized(self.agent.delete(self.address(path))).query_pairs(query.iter().cloned());
        let request = request.config().timeout_global(Some(ANSWER_TIMEOUT)).build();
        let mut response = self.checked(request.call())?;
        response.body_mut().read_to_vec().map_err(|error| CliError::Failed(error.to_string()))
    }

    /// Uploads a bundle while it is packed; `progress` is told how many of its bytes are on the way.
    pub fn register(
        &self,
        name: &str,
        query: &[(&str, String)],
        bundle: &Bundle,
        progress: impl FnMut(u64) + Send,
    ) -> Result<Registered, CliError> {
        let (mut reader, writer) =
            io::pipe().map_err(|error| CliError::Failed(format!("making a pipe: {error}")))?;
        let request = self.agent.post(self.address(&format!("/api/models/{name}/versions")));
        let request = self.authorized(request).query_pairs(query.iter().cloned());
        let request = request.config().timeout_recv_response(Some(PROOF_TIMEOUT)).build();
        // A registry that refuses does so before the bytes are sent.
        let request = request.header("expect", "100-continue").header("content-type", "application/x-tar");
        std::thread::scope(|scope| {
            let packing = scope.spawn(move || bundle.write_archive(BufWriter::new(writer), progress));
            let answer = self.checked(request.send(SendBody::from_reader(&mut reader)));
            drop(reader);
            match packing.join() {
                // The registry answered before it had read all: its answer says why.
                Ok(Err(BundleError::Io { source, .. })) if source.kind() == io::ErrorKind::BrokenPipe => {}
                Ok(packed) => packed.map_err(|error| CliError::Failed(error.to_string()))?,
                Err(_) => return Err(CliError::Failed("packing the bundle failed".to_owned())),
            }
            json(answer?)
        })
    }

    fn authorized<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("authorization", token),
            None => request,
        }
    }

    fn address(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    fn open(
        &self,
        path: &str,
        query: &[(&str, String)],
        timeout: Option<Duration>,
    ) -> Result<Response<Body>, CliError> {
        let request = self.authorized(self.agent.get(self.address(path))).query_pairs(query.iter().cloned());
        let request =
            request.config().timeout_global(timeout).timeout_recv_response(Some(ANSWER_TIMEOUT)).build();
        self.checked(request.call())
    }

    /// The answer, if it is a good one.
    fn checked(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, CliError> {
        let mut response = answer.map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                CliError::Usage(format!("{} is no URL of a registry: {error}", self.url))
            }
            error => CliError::Unreachable(format!(
                "{} can't be reached ({error}); is `edgewise serve` running? EDGEWISE_URL says where",
                self.url
            )),
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let problem = response.body_mut().read_to_vec().ok();
        let problem: Option<Problem> = problem.and_then(|body| serde_json::from_slice(&body).ok());
        let detail = problem.as_ref().map_or(format!("the registry answered {status}"), |p| p.detail.clone());
        let holders = problem.map(|problem| problem.holders).unwrap_or_default();
        let holders: Vec<String> =
            holders.iter().map(|holder| format!("{} ({})", holder.device, holder.why)).collect();
        let detail =
            if holders.is_empty() { detail } else { format!("{detail}: held by {}", holders.join(", ")) };
        Err(match status {
            400 => CliError::Usage(detail),
            404 => CliError::NotFound(detail),
            409 | 412 | 413 | 422 => CliError::Refused(detail),
            503 | 504 => CliError::Unreachable(detail),
            _ => CliError::Failed(detail),
        })
    }
}

fn json<T: DeserializeOwned>(mut response: Response<Body>) -> Result<T, CliError> {
    let unreadable = |error: &dyn std::fmt::Display| {
        CliError::Failed(format!("the registry's answer can't be read: {error}"))
    };
    let body = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec();
    serde_json::from_slice(&body.map_err(|error| unreadable(&error))?).map_err(|error| unreadable(&error))
}

fn encoded(body: &impl Serialize) -> Result<Vec<u8>, CliError> {
    serde_json::to_vec(body).map_err(|error| CliError::Failed(error.to_string()))
}
