//! The section `[trace]`: where spans go, and of which requests.

use std::net::IpAddr;

use axum::http::Uri;

use super::mistake::without_credentials;
use super::reader::Reader;
use super::value;

/// Traces.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Where the collector takes OTLP over HTTP, without the path `/v1/traces`; `None` for no traces.
    pub endpoint: Option<String>,
    /// The share of requests that are traced, of those whose caller does not say, 0 to 1.
    pub sample: f64,
}

/// Reads the section `trace`. `None`: something is wrong, and kept in `reader`.
pub(super) fn read(reader: &mut Reader<'_>) -> Option<Trace> {
    let insecure = reader.value("trace.insecure_remote", value::boolean);
    let endpoint = reader.optional("trace.endpoint", |text| endpoint(text, insecure.unwrap_or(true)));
    let sample = reader.value("trace.sample", value::number(0.0..=1.0));
    insecure?;
    Some(Trace { endpoint: endpoint?, sample: sample? })
}

fn endpoint(text: &str, insecure: bool) -> Result<String, String> {
    if without_credentials(text) != text {
        return Err("a collector's URL holds no user name and no password".to_owned());
    }
    let wrong = || format!("{text:?} must be a URL such as http://127.0.0.1:4318");
    let url: Uri = text.parse().map_err(|_| wrong())?;
    let host = url.host().ok_or_else(wrong)?.trim_matches(['[', ']']);
    let here = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    match url.scheme_str() {
        Some("https") => Ok(text.to_owned()),
        Some("http") if here || insecure => Ok(text.to_owned()),
        Some("http") => Err(format!(
            "{text} is unencrypted and not on this device: use https://, or set trace.insecure_remote = true in a closed \
             network"
        )),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_leave_the_device_encrypted_unless_it_is_said_otherwise() {
        for good in
            ["http://127.0.0.1:4318", "http://[::1]:4318/", "http://localhost", "https://otel.example/in"]
        {
            assert_eq!(endpoint(good, false).as_deref(), Ok(good));
        }
        for bad in
            ["http://otel.example:4318", "127.0.0.1:4318", "grpc://127.0.0.1:4317", "http://a:b@localhost"]
        {
            assert!(endpoint(bad, false).is_err(), "{bad}");
        }
        assert!(endpoint("http://otel.example:4318", true).is_ok());
    }
}
