//! The agent's HTTP API from outside: what it answers to good and to bad requests of every kind.

use e2e::client::{Answer, Client};
use e2e::data::{self, MODEL};
use e2e::process::{Agent, Failure};
use serde_json::{Value, json};

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn bad_requests_get_their_status_and_one_line() -> Result<(), Failure> {
    let (_agent, client) = start("http-bad")?;
    let infer = format!("/v2/models/{MODEL}/infer");
    let input = |name: &str, kind: &str, shape: Value, data: Value| json!({"inputs": [{"name": name, "datatype": kind, "shape": shape, "data": data}]});
    let load = vec![0.5; 24];
    let good = input("load", "FP32", json!([1, 24]), json!(load));
    let mut asks_for_other = good.clone();
    asks_for_other["outputs"] = json!([{"name": "nothing"}]);
    let oip = [
        ("not JSON", "{\"inputs\": [".into(), 400, "JSON"),
        ("no inputs", json!({}), 400, "inputs"),
        ("another input", input("other", "FP32", json!([1, 24]), json!(load)), 400, "load"),
        ("another type", input("load", "INT64", json!([1, 24]), json!(vec![1; 24])), 400, "FP32"),
        ("another shape", input("load", "FP32", json!([1, 23]), json!(vec![0.5; 23])), 400, "24"),
        ("too few", input("load", "FP32", json!([1, 24]), json!([0.5])), 400, "load"),
        ("words", input("load", "FP32", json!([1, 24]), json!(vec!["a"; 24])), 400, "load"),
        ("no such type", input("load", "FP33", json!([1, 24]), json!(load)), 400, "FP33"),
        ("another output", asks_for_other, 400, "nothing"),
    ];
    for (name, body, status, says) in oip {
        let body = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
        let answer = client.send("POST", &infer, &[JSON], body.as_bytes())?;
        refused(name, &answer, "error", status, says);
    }
    let body = good.to_string();
    for (name, method, path, headers, status, says) in [
        ("unknown model", "POST", "/v2/models/other/infer", &[JSON][..], 404, "other"),
        ("unknown version", "POST", &format!("/v2/models/{MODEL}/versions/9/infer"), &[JSON], 404, "9"),
        ("unknown model's ready", "GET", "/v2/models/other/ready", &[], 404, "other"),
        ("unknown path", "GET", "/v3", &[], 404, "/v3"),
        ("wrong method", "PUT", &infer, &[JSON], 405, "PUT"),
        (
            "cut-off header",
            "POST",
            &infer,
            &[JSON, ("inference-header-content-length", "999999")],
            400,
            "body",
        ),
        ("compressed", "POST", &infer, &[JSON, ("content-encoding", "gzip")], 415, "content-encoding"),
    ] {
        let body = if method == "GET" { &[][..] } else { body.as_bytes() };
        refused(name, &client.send(method, path, headers, body)?, "error", status, says);
    }
    let too_large = client.send("POST", &infer, &[JSON], &vec![b' '; 9 << 20]);
    // The answer comes before the body is read, so the client may see no more than the end of the connection.
    if let Ok(answer) = too_large {
        refused("too large", &answer, "error", 413, "limit");
    }
    assert_eq!(client.post(&infer, &good)?.status, 200, "a good request after all these");
    Ok(())
}

#[test]
fn azure_ml_clients_get_what_they_know() -> Result<(), Failure> {
    let (_agent, client) = start("http-azure")?;
    let load = vec![0.5; 24];
    let body = json!({"data": [load]});
    assert_eq!(client.get("/")?.text, "Healthy");
    let ids = [JSON, ("x-request-id", "r-1"), ("x-ms-client-request-id", "c-1"), ("traceid", "t-1")];
    let answer = client.send("POST", "/score", &ids, body.to_string().as_bytes())?;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert!(answer.json()["label"][0].is_i64(), "{}", answer.text);
    assert_eq!((answer.header("x-request-id"), answer.header("traceid")), ("r-1", "t-1"));
    assert_eq!(answer.header("x-ms-client-request-id"), "c-1");
    assert_eq!(answer.header("x-ms-run-function-failed"), "False");
    assert!(answer.header("x-ms-run-fn-exec-ms").parse::<f64>().is_ok(), "{:?}", answer.headers);

    let query = format!("/score?data=[{}]", serde_json::to_string(&load).map_err(|e| e.to_string())?);
    let queried = client.get(&query.replace('[', "%5B").replace(']', "%5D"))?;
    assert_eq!((queried.status, &queried.text), (200, &answer.text));
    assert_eq!(queried.header("x-request-id").len(), 36, "an id is made where none is given");
    assert_eq!(client.send("OPTIONS", "/score", &[], &[])?.status, 200);

    let long = "x".repeat(101);
    let text = body.to_string();
    for (name, method, path, headers, body, status, says) in [
        ("not JSON", "POST", "/score", &[JSON][..], "{", 400, ""),
        ("no data", "POST", "/score", &[JSON], "{\"rows\": 1}", 400, "data"),
        ("another shape", "POST", "/score", &[JSON], "{\"data\": [[1, 2]]}", 400, "24"),
        ("text", "POST", "/score", &[("content-type", "text/plain")], &text, 415, "application/json"),
        ("long id", "POST", "/score", &[JSON, ("x-request-id", &long)], &text, 431, "x-request-id"),
        ("another method", "PUT", "/score", &[JSON], &text, 405, "PUT"),
        ("another dialect", "GET", "/swagger.json?version=4", &[], "", 404, "4"),
    ] {
        refused(name, &client.send(method, path, headers, body.as_bytes())?, "message", status, says);
    }
    Ok(())
}

fn start(name: &str) -> Result<(Agent, Client), Failure> {
    let directory = e2e::fresh_directory(&format!("e2e/{name}"))?;
    let agent = Agent::start_local(&directory, &data::sample(Some(2)), &[])?;
    let client = Client::new(&agent.http);
    Ok((agent, client))
}

/// The status, and one line of JSON that says what is wrong.
fn refused(name: &str, answer: &Answer, key: &str, status: u16, says: &str) {
    let line = answer.json()[key].as_str().unwrap_or_default().to_owned();
    assert_eq!(answer.status, status, "{name}: {}", answer.text);
    assert!(!line.is_empty() && !line.contains('\n') && line.contains(says), "{name}: {}", answer.text);
}
