//! The workload API of IoT Edge's security daemon: HTTP over a unix socket of this module's own, which signs for the
//! module and tells whom to trust. (Contract: `workloadVersion_2020_07_07.yaml` of Azure/iotedge.)
//!
//! Invariant: a call is over in [`CALL_TIMEOUT`] and takes at most [`MAX_ANSWER_BYTES`], whatever the other end does.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use cloud_sync::limits::bounded_text;
use futures_util::future::{Either, select};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::token::percent_encoded;

/// Longest call; the daemon is on this machine, and a signature takes it milliseconds.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest answer. A trust bundle holds a few certificates of some kilobytes.
pub const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Bytes of an HMAC-SHA256.
const SIGNATURE_BYTES: usize = 32;

/// The workload API, as one module speaks to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    endpoint: Endpoint,
    api_version: String,
    module: String,
    generation: String,
    limit: Duration,
}

/// Where the workload API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `unix:///PATH`.
    Unix(PathBuf),
    /// `http://HOST[:PORT]`.
    Http {
        /// A name or an address; an IPv6 address in brackets.
        host: String,
        /// The port.
        port: u16,
    },
}

/// Text that is not where a workload API can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no workload API: unix:///PATH or http://HOST[:PORT] is expected")]
pub struct EndpointError(String);

/// Why a call to the workload API failed. All of it may pass: the caller asks again.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// Nobody is there.
    #[error("reaching the workload API at {endpoint}: {source}")]
    Unreachable {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// The exchange broke off, or was no HTTP.
    #[error("{call} of the workload API: {source}")]
    Http {
        /// The call.
        call: &'static str,
        /// Why.
        source: hyper::Error,
    },
    /// The answer did not come in time.
    #[error("{call} of the workload API: no answer within {limit:?}")]
    Timeout {
        /// The call.
        call: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The API refuses.
    #[error("{call} of the workload API: status {status}: {message}")]
    Refused {
        /// The call.
        call: &'static str,
        /// The status.
        status: u16,
        /// Its reason.
        message: String,
    },
    /// The answer is none that can be used.
    #[error("{call} of the workload API: the answer {why}")]
    Answer {
        /// The call.
        call: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl Workload {
    /// The API at `endpoint` in the version that edgeAgent names, for a module. The generation changes when the
    /// module is made anew under the same name.
    pub fn new(endpoint: Endpoint, api_version: String, module: String, generation: String) -> Self {
        Self { endpoint, api_version, module, generation, limit: CALL_TIMEOUT }
    }

    /// The certificates of those who may have signed edgeHub's, as PEM.
    ///
    /// # Errors
    /// The call failed, or there is none.
    pub async fn trust_bundle(&self) -> Result<String, WorkloadError> {
        const CALL: &str = "trust-bundle";
        #[derive(Deserialize)]
        struct Answer {
            certificate: String,
        }
        let answer: Answer = self.call(CALL, Method::GET, "/trust-bundle", Bytes::new()).await?;
        if answer.certificate.contains("-----BEGIN CERTIFICATE-----") {
            Ok(answer.certificate)
        } else {
            Err(WorkloadError::Answer { call: CALL, why: "holds no certificate".to_owned() })
        }
    }

    /// The HMAC-SHA256 of `data` with this module's key, in base64.
    ///
    /// # Errors
    /// The call failed, or what came is no signature.
    pub async fn sign(&self, data: &[u8]) -> Result<String, WorkloadError> {
        const CALL: &str = "sign";
        #[derive(Deserialize)]
        struct Answer {
            digest: String,
        }
        let path = format!(
            "/modules/{}/genid/{}/sign",
            percent_encoded(&self.module),
            percent_encoded(&self.generation)
        );
        let body = json!({"keyId": "primary", "algo": "HMACSHA256", "data": BASE64.encode(data)});
        let answer: Answer = self.call(CALL, Method::POST, &path, body.to_string().into()).await?;
        match BASE64.decode(&answer.digest) {
            Ok(bytes) if bytes.len() == SIGNATURE_BYTES => Ok(answer.digest),
            _ => Err(WorkloadError::Answer { call: CALL, why: "holds no signature".to_owned() }),
        }
    }

    async fn call<A: for<'a> Deserialize<'a>>(
        &self,
        call: &'static str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<A, WorkloadError> {
        let answer = |why: String| WorkloadError::Answer { call, why };
        let uri = format!("{path}?api-version={}", percent_encoded(&self.api_version));
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(HOST, self.endpoint.host())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| answer(format!("can't be asked for: {error}")))?;

        let exchange = async {
            let unreachable = |source| WorkloadError::Unreachable { endpoint: self.endpoint.clone(), source };
            match &self.endpoint {
                Endpoint::Unix(path) => {
                    exchange(call, UnixStream::connect(path).await.map_err(unreachable)?, request).await
                }
                Endpoint::Http { host, port } => {
                    let stream = TcpStream::connect(format!("{host}:{port}")).await.map_err(unreachable)?;
                    exchange(call, stream, request).await
                }
            }
        };
        let (status, body) = tokio::time::timeout(self.limit, exchange)
            .await
            .unwrap_or(Err(WorkloadError::Timeout { call, limit: self.limit }))?;
        if !status.is_success() {
            return Err(WorkloadError::Refused { call, status: status.as_u16(), message: message(&body) });
        }
        serde_json::from_slice(&body).map_err(|error| answer(format!("can't be read: {error}")))
    }
}

/// One request and its answer on a connection of their own: there is one call in an hour.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    call: &'static str,
    stream: S,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), WorkloadError> {
    let http = |source| WorkloadError::Http { call, source };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let exchange = pin!(async move {
        let answer = sender.send_request(request).await.map_err(http)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(|error| {
            let why = match error.downcast_ref::<LengthLimitError>() {
                Some(_) => format!("is larger than {MAX_ANSWER_BYTES} bytes"),
                None => format!("broke off: {error}"),
            };
            WorkloadError::Answer { call, why }
        })?;
        Ok((status, body.to_bytes()))
    });
    match select(exchange, pin!(connection)).await {
        Either::Left((answer, _)) => answer,
        // The answer may be here although the connection is not any more; else the exchange says what is missing.
        Either::Right((_, exchange)) => exchange.await,
    }
}

/// The reason that the API gives, in its own form or in whatever else came.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    let refusal = serde_json::from_slice(body).map(|refusal: Refusal| refusal.message);
    bounded_text(refusal.unwrap_or_else(|_| String::from_utf8_lossy(body).into_owned()))
}

impl Endpoint {
    fn host(&self) -> &str {
        match self {
            // HTTP wants one, and a socket has none.
            Self::Unix(_) => "localhost",
            Self::Http { host, .. } => host,
        }
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let wrong = || EndpointError(bounded_text(text));
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(wrong()) };
        }
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let plain =
            uri.scheme_str() == Some("http") && matches!(uri.path(), "" | "/") && uri.query().is_none();
        let authority = authority.filter(|_| plain).ok_or_else(wrong)?;
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => 80,
            _ => authority.port_u16().ok_or_else(wrong)?,
        };
        Ok(Self::Http { host: authority.host().to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Http { host, port } => write!(f, "http://{host}:{port}"),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixListener};
    use tokio::task::JoinHandle;

    use super::*;

    /// Takes one connection for each answer and gives back the requests.
    pub(in crate::module) fn answering(
        listener: UnixListener,
        answers: Vec<Vec<u8>>,
    ) -> JoinHandle<Vec<String>> {
        tokio::spawn(async move {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                requests.push(read_request(&mut stream).await);
                // The client may have read enough and left.
                let _left = stream.write_all(&answer).await;
            }
            requests
        })
    }

    async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> String {
        let mut text = String::new();
        loop {
            let mut bytes = [0; 1024];
            let read = stream.read(&mut bytes).await.unwrap();
            text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if read == 0 || length.is_none_or(|length| body.len() >= length.parse().unwrap()) {
                return text;
            }
        }
    }

    pub(in crate::module) fn answer(status: &str, body: &str) -> Vec<u8> {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}").into()
    }

    fn workload(endpoint: Endpoint) -> Workload {
        let [api_version, module, generation] =
            ["2022-08-03", "$inferAgent", "638412345678901234"].map(str::to_owned);
        Workload::new(endpoint, api_version, module, generation)
    }

    fn socket() -> (tempfile::TempDir, UnixListener, Workload) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("workload.sock");
        let listener = UnixListener::bind(&path).unwrap();
        (directory, listener, workload(Endpoint::Unix(path)))
    }

    #[tokio::test]
    async fn it_signs_and_tells_whom_to_trust() {
        let (_directory, listener, workload) = socket();
        let signature = BASE64.encode([7; 32]);
        let pem = "-----BEGIN CERTIFICATE-----\\nMII=\\n-----END CERTIFICATE-----\\n";
        let peer = answering(
            listener,
            vec![
                answer("200 OK", &format!(r#"{{"certificate":"{pem}"}}"#)),
                answer("200 OK", &format!(r#"{{"digest":"{signature}"}}"#)),
            ],
        );
        assert!(workload.trust_bundle().await.unwrap().ends_with("-----END CERTIFICATE-----\n"));
        assert_eq!(workload.sign(b"sr\n1").await.unwrap(), signature);
        let requests = peer.await.unwrap();
        assert!(
            requests[0].starts_with("GET /trust-bundle?api-version=2022-08-03 HTTP/1.1\r\n"),
            "{requests:?}"
        );
        let path = "/modules/%24inferAgent/genid/638412345678901234/sign?api-version=2022-08-03";
        assert!(requests[1].starts_with(&format!("POST {path} HTTP/1.1\r\n")), "{requests:?}");
        let body = r#"{"keyId":"primary","algo":"HMACSHA256","data":"c3IKMQ=="}"#;
        assert!(requests[1].ends_with(body), "{requests:?}");
    }

    #[tokio::test]
    async fn it_says_what_went_wrong() {
        let (_directory, listener, workload) = socket();
        let huge = format!(r#"{{"digest":"{}"}}"#, "a".repeat(MAX_ANSWER_BYTES));
        let cases = [
            (answer("403 Forbidden", r#"{"message":"forbidden"}"#), "status 403: forbidden"),
            (answer("500 Internal Server Error", "key service\n"), "status 500: key service"),
            (answer("200 OK", "{}"), "can't be read"),
            (answer("200 OK", r#"{"digest":"c2hvcnQ="}"#), "holds no signature"),
            (answer("200 OK", &huge), "is larger than"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_vec(), "broke off"),
            (b"SSH-2.0\r\n\r\n".to_vec(), "sign of the workload API"),
            (Vec::new(), "sign of the workload API"),
        ];
        let (answers, expected): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
        let peer = answering(listener, answers);
        for expected in expected {
            let why = workload.sign(b"x").await.unwrap_err().to_string();
            assert!(why.contains(expected), "{expected}: {why}");
        }
        peer.await.unwrap();
        let why = workload.trust_bundle().await.unwrap_err();
        assert!(matches!(why, WorkloadError::Unreachable { .. }), "{why}");
    }

    #[tokio::test]
    async fn it_may_be_on_tcp_and_empty_handed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let peer = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_request(&mut stream).await;
            stream.write_all(&answer("200 OK", r#"{"certificate":""}"#)).await.unwrap();
        });
        let why = workload(endpoint).trust_bundle().await.unwrap_err().to_string();
        assert!(why.contains("holds no certificate"), "{why}");
        peer.await.unwrap();
    }

    #[tokio::test]
    async fn a_daemon_that_never_answers_is_left() {
        let (_directory, listener, mut workload) = socket();
        workload.limit = Duration::from_millis(50);
        let (why, _connection) = tokio::join!(workload.sign(b"x"), listener.accept());
        assert!(matches!(why, Err(WorkloadError::Timeout { .. })), "{why:?}");
    }

    #[test]
    fn endpoints_read_as_they_print() {
        for (text, print) in [
            ("unix:///var/run/iotedge/workload.sock", "unix:///var/run/iotedge/workload.sock"),
            ("http://workload", "http://workload:80"),
            ("http://[::1]:8081/", "http://[::1]:8081"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), print);
        }
        for bad in [
            "",
            "/var/run/x.sock",
            "unix://x",
            "https://h",
            "http://",
            "http://u@h",
            "http://h/x",
            "http://h:x",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
