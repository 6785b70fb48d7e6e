//! Asking a server for a part of a file: one request, its answer read as it comes.
//!
//! Only `https` is spoken, also behind a redirect. Every failure is one that may pass, since the URL can be mended,
//! the file put in its place or the server be started: the deployment says what it was and tries again.

use std::io::{self, Read};
use std::ops::Range;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::percent_decode_str;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{StatusCode, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Proxy};

use super::reader::Answer;
use super::source::split_user;

/// Longest wait for a name, and again for a connection with its handshakes: as for a broker.
const CONNECT: Duration = Duration::from_secs(20);

/// Longest silence of a server: a link that stalls for some seconds is borne, a dead one is left.
const SILENCE: Duration = Duration::from_secs(30);

/// Longest that one request with its answer takes; the rest is asked for anew. What came is kept, so a slow link
/// finishes too, unless the server ignores ranges.
const WHOLE: Duration = Duration::from_secs(5 * 60);

/// Redirects that are followed: a release page, a load balancer, a store, and some to spare.
const REDIRECTS: u32 = 5;

/// Most bytes of an answer's head.
const HEAD_BYTES: usize = 16 * 1024;

/// A file on a server.
pub(super) struct Https {
    agent: Agent,
    /// Without the user.
    url: String,
    authorization: Option<String>,
}

impl Https {
    /// The file at `url`, asked for as this machine is set up: its authorities, and the proxy of its environment.
    pub(super) fn new(url: &str) -> io::Result<Self> {
        let authorities = cloud_sync::session::system_authorities().map_err(io::Error::other)?;
        let authorities: Vec<_> =
            authorities.iter().map(|authority| Certificate::from_der(authority).to_owned()).collect();
        Ok(Self::trusting(&authorities, Proxy::try_from_env(), url))
    }

    /// The same, but for whom to trust and by which way to go.
    pub(super) fn trusting(authorities: &[Certificate<'static>], proxy: Option<Proxy>, url: &str) -> Self {
        let (user, rest) = split_user(url);
        let authorization = user.map(|user| {
            let user: Vec<u8> = percent_decode_str(user).collect();
            let colon: &[u8] = if user.contains(&b':') { b"" } else { b":" };
            format!("Basic {}", BASE64_STANDARD.encode([&user, colon].concat()))
        });
        let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(authorities)).build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .proxy(proxy)
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(REDIRECTS)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            .user_agent(concat!("edgewise-agent/", env!("CARGO_PKG_VERSION")))
            // The offsets are those of the file as it is.
            .accept_encoding("identity")
            .timeout_global(Some(WHOLE))
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .max_response_header_size(HEAD_BYTES)
            .build();
        Self { agent: config.new_agent(), url: format!("https://{rest}"), authorization }
    }

    /// Asks for `range` of the file. The answer begins at the file's beginning where the server ignores ranges.
    pub(super) fn open(&self, range: Range<u64>) -> io::Result<Answer> {
        // A range's last byte is part of it, in HTTP.
        let asked = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        let mut request = self.agent.get(&self.url).header(header::RANGE, asked);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let response = request.call().map_err(|error| io::Error::other(explain(&error)))?;
        let status = response.status();
        let range = match status {
            StatusCode::OK => 0..u64::MAX,
            StatusCode::PARTIAL_CONTENT => {
                let given = response.headers().get(header::CONTENT_RANGE);
                let given = given.and_then(|given| content_range(given.to_str().ok()?));
                given.filter(|given| given.start == range.start && !given.is_empty()).ok_or_else(|| {
                    io::Error::other("the server gives another part of it than it was asked for")
                })?
            }
            status => return Err(io::Error::other(format!("the server answers {status}{}", advice(status)))),
        };
        let bytes: Box<dyn Read> = Box::new(response.into_body().into_reader());
        Ok(Answer { bytes, range })
    }
}

/// What to do about a status, where that can be said.
fn advice(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            "; the URL needs a user and password, or a signature that has not run out"
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => "; is the URL right, and the file there?",
        StatusCode::RANGE_NOT_SATISFIABLE => "; the file is shorter than the bundle",
        _ => "",
    }
}

/// The library's words, but for those that repeat a URL: it may hold a secret.
fn explain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::RequireHttpsOnly(_) => "the server leads on to what is not https".to_owned(),
        ureq::Error::BadUri(_) => "the server leads on to what is no URL".to_owned(),
        error => error.to_string(),
    }
}

/// The range of `bytes FIRST-LAST/ALL`.
fn content_range(text: &str) -> Option<Range<u64>> {
    let (range, _) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some(first.trim().parse().ok()?..last.trim().parse::<u64>().ok()?.checked_add(1)?)
}
