//! HTTP as the tests speak it: any request, its status and body, and the Open Inference Protocol's most common one.

use std::iter::Sum;
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Value, json};
use ureq::http::{HeaderMap, Request};

use crate::data::{MODEL, Window};
use crate::process::Failure;

/// Longest time from request to answer, so that no test waits for ever.
const LONGEST: Duration = Duration::from_secs(60);

/// What a server answered.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub text: String,
}

impl Answer {
    /// The body as JSON; `null` for anything else.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// The text of a header; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// One client with connections that are kept.
#[derive(Clone)]
pub struct Client {
    http: ureq::Agent,
    url: String,
}

impl Client {
    /// A client of the server at `url`.
    pub fn new(url: &str) -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(LONGEST));
        Self { http: config.build().into(), url: url.trim_end_matches('/').to_owned() }
    }

    /// Sends a request; whatever status it is answered with is an answer.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, Failure> {
        let failed = |error: &dyn std::fmt::Display| format!("{method} {}{path}: {error}", self.url);
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let sent = if body.is_empty() && method != "POST" {
            self.http.run(request.body(()).map_err(|error| failed(&error))?)
        } else {
            self.http.run(request.body(body).map_err(|error| failed(&error))?)
        };
        let mut response = sent.map_err(|error| failed(&error))?;
        let text = response.body_mut().read_to_vec().map_err(|error| failed(&error))?;
        Ok(Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            text: String::from_utf8_lossy(&text).into_owned(),
        })
    }

    /// `GET`.
    pub fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.send("GET", path, &[], &[])
    }

    /// `POST` of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer, Failure> {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// Scores a window of the sample model; gives the version that answered and the class that it predicts.
    pub fn predict(&self, window: &Window) -> Result<(u64, i64), Failure> {
        self.predict_as(window, None)
    }

    /// As [`Client::predict`], under an id of the caller's.
    pub fn predict_as(&self, window: &Window, id: Option<&str>) -> Result<(u64, i64), Failure> {
        let mut body = json!({"inputs": [{
            "name": "load", "shape": [1, window.load.len()], "datatype": "FP32", "data": window.load,
        }]});
        if let Some(id) = id {
            body["id"] = id.into();
        }
        let answer = self.post(&format!("/v2/models/{MODEL}/infer"), &body)?;
        let said = answer.json();
        let version = said["model_version"].as_str().and_then(|version| version.parse().ok());
        let outputs = said["outputs"].as_array().into_iter().flatten();
        let label =
            outputs.filter(|output| output["name"] == "label").find_map(|output| output["data"][0].as_i64());
        version.zip(label).ok_or_else(|| format!("{}: not a prediction: {}", answer.status, answer.text))
    }

    /// The sum over a metric's samples, which count something.
    pub fn metric(&self, name: &str) -> Result<u64, Failure> {
        self.metric_as(name)
    }

    /// The sum over a metric's samples.
    pub fn metric_as<T: FromStr + Sum>(&self, name: &str) -> Result<T, Failure> {
        let text = self.get("/metrics")?.text;
        let values = text.lines().filter_map(|line| {
            let (found, value) = line.rsplit_once(' ')?;
            let is_it =
                found == name || found.strip_prefix(name).is_some_and(|labels| labels.starts_with('{'));
            if is_it { value.parse::<T>().ok() } else { None }
        });
        let values: Vec<T> = values.collect();
        if values.is_empty() {
            Err(format!("there is no metric {name}"))
        } else {
            Ok(values.into_iter().sum())
        }
    }
}
