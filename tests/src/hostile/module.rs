//! What IoT Edge says to the module: the twin, and the workload API's answers.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::Instant;

use edgewise_agent::module::desired::{self, Wishes};
use edgewise_agent::module::merge::{self, Object};
use edgewise_agent::module::twin::{Act, Twin};
use edgewise_agent::module::workload::{Endpoint, Workload};

/// A twin's desired properties with every key.
const DESIRED: &str = r#"{"$version":4,"models":{"load":{"version":3,"digest":
"af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262","source":"https://models.example/load.bundle",
"size":70000,"attempt":1,"settings":{"provider":"tract","threads":1,"instances":1,"queue":9,
"collect":{"enabled":true,"rate":0.5}}}},"routes":[{"input":"in","model":"load","output":"out"}],
"collect":{"enabled":false},"registry":{"broker":"mqtts://broker.example","root":"edgewise/v1/p","device":"d",
"keepAlive":"30s","insecureRemote":false},"logLevel":"info","$metadata":{}}"#;

/// Two documents with a zero byte between them: the twin as it is read, and a change of it.
pub(super) fn twin(data: &[u8]) {
    let (document, patch) = match data.iter().position(|byte| *byte == 0) {
        Some(at) => (data.get(..at).unwrap_or_default(), data.get(at + 1..).unwrap_or_default()),
        None => (data, [].as_slice()),
    };
    let now = Instant::now();
    let mut twin = Twin::new("boot");
    for act in twin.connected(now) {
        if let Act::Get { rid } = act {
            let _ = twin.answer(200, &rid, document, now);
        }
    }
    let before = twin.desired().clone();
    let wishes = understood(&before, &Wishes::default());
    let _ = twin.patch(None, patch, now);
    understood(twin.desired(), &wishes);
    let difference = merge::difference(&before, twin.desired());
    let mut made = before;
    merge::apply(&mut made, &difference);
    assert!(has_null(twin.desired()) || made == *twin.desired());
}

/// Reads it twice: what was understood leaves nothing that a second reading would see in another way.
fn understood(desired: &Object, previous: &Wishes) -> Wishes {
    let (wishes, mistakes) = desired::read(desired, previous);
    let (again, same) = desired::read(desired, &wishes);
    assert_eq!(mistakes, same);
    assert!(again == wishes);
    wishes
}

/// Whether a null stands anywhere, which a patch can't say.
fn has_null(object: &Object) -> bool {
    object.values().any(|value| value.is_null() || value.as_object().is_some_and(has_null))
}

pub(super) fn twin_seeds() -> Vec<Vec<u8>> {
    let whole = format!(r#"{{"desired":{DESIRED},"reported":{{"$version":2,"state":"x"}}}}"#);
    let patch = r#"{"$version":5,"models":{"load":{"version":4},"old":null},"routes":[]}"#;
    vec![[whole.as_bytes(), &[0], patch.as_bytes()].concat(), whole.into_bytes()]
}

/// The bytes are the whole answer, HTTP included; the first says to which call.
pub(super) fn workload(data: &[u8]) {
    let Some((call, answer)) = data.split_first() else { return };
    let Ok(directory) = tempfile::tempdir() else { return };
    let socket = directory.path().join("workload.sock");
    let Ok(listener) = UnixListener::bind(&socket) else { return };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    let [version, module, generation] = ["2020-07-07", "agent", "1"].map(str::to_owned);
    let workload = Workload::new(Endpoint::Unix(socket), version, module, generation);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if let Ok((mut stream, _)) = listener.accept() {
                let mut request = [0; 2048];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(answer);
            }
        });
        runtime.block_on(async {
            if call % 2 == 0 {
                let _ = workload.trust_bundle().await;
            } else {
                let _ = workload.sign(b"data").await;
            }
        });
    });
}

pub(super) fn workload_seeds() -> Vec<Vec<u8>> {
    let answer = |call: u8, status: &str, body: &str| {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n");
        [&[call], head.as_bytes(), body.as_bytes()].concat()
    };
    vec![
        answer(
            0,
            "200 OK",
            r#"{"certificate":"-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"}"#,
        ),
        answer(1, "200 OK", r#"{"digest":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}"#),
        answer(1, "404 Not Found", r#"{"message":"no such key"}"#),
        b"\x01HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n".to_vec(),
    ]
}
