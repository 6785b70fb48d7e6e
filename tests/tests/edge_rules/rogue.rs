//! A module of a few lines, which says what it likes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use e2e::edge::{DEVICE, Edge, GENERATION, HUB_HOST, MODULE};
use e2e::process::Failure;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

/// The text that a token is signed for, before its end.
pub(super) const RESOURCE: &str =
    "contoso-test.azure-devices.net%2Fdevices%2Fedge-dev-01%2Fmodules%2FinferAgent";

/// How long to wait for a packet.
const PATIENCE: Duration = Duration::from_secs(30);

/// What stands in a CONNECT.
pub(super) struct Login {
    pub(super) level: u8,
    pub(super) flags: u8,
    pub(super) client_id: String,
    pub(super) username: String,
    pub(super) password: String,
}

impl Login {
    /// One that is right, with a token that ends in so many seconds.
    pub(super) fn new(edge: &Edge, seconds: i64) -> Result<Self, Failure> {
        let end = now() + seconds;
        let signature = escape(&sign(edge, &format!("{RESOURCE}\n{end}"))?);
        Ok(Self {
            level: 4,
            // A user name and a password; the session is kept.
            flags: 0xC0,
            client_id: format!("{DEVICE}/{MODULE}"),
            username: format!(
                "{HUB_HOST}/{DEVICE}/{MODULE}/?api-version=2021-04-12&DeviceClientType=rogue%2F1"
            ),
            password: format!("SharedAccessSignature sr={RESOURCE}&sig={signature}&se={end}"),
        })
    }

    fn packet(&self) -> Vec<u8> {
        let texts = [&self.client_id, &self.username, &self.password].map(|text| with_length(text));
        packet(0x10, &[b"\x00\x04MQTT", &[self.level, self.flags, 0, 60], &texts.concat()])
    }
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// Has the workload API sign a text; gives base64.
pub(super) fn sign(edge: &Edge, text: &str) -> Result<String, Failure> {
    let path = format!("/modules/{MODULE}/genid/{GENERATION}/sign?api-version=2022-08-03");
    let body = json!({"keyId": "primary", "algo": "HMACSHA256", "data": STANDARD.encode(text)}).to_string();
    let (status, answer) = workload(edge, "POST", &path, "application/json", &body)?;
    match answer["digest"].as_str() {
        Some(digest) if status == 200 => Ok(digest.to_owned()),
        _ => Err(format!("sign answers {status}: {answer}")),
    }
}

/// Calls the workload API, which has to be on a port.
pub(super) fn workload(
    edge: &Edge,
    method: &str,
    path: &str,
    kind: &str,
    body: &str,
) -> Result<(u16, Value), Failure> {
    let environment = edge.environment();
    let uri = environment.iter().find(|(name, _)| *name == "IOTEDGE_WORKLOADURI");
    let address = uri.map(|(_, uri)| uri.trim_start_matches("http://")).unwrap_or_default();
    let failed = |error: std::io::Error| format!("{method} {path}: {error}");
    let mut stream = TcpStream::connect(address).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n");
    let request = format!("{head}Content-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(failed)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").ok_or("no head")?;
    let body = serde_json::from_str(body).map_err(|error| format!("{error}: {answer}"))?;
    Ok((status.ok_or("no status")?, body))
}

/// Percent-encodes what base64 has beside letters and digits.
pub(super) fn escape(base64: &str) -> String {
    base64.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
}

/// A connection to edgeHub.
pub(super) struct Rogue {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

/// A PUBLISH from edgeHub.
#[derive(Debug, PartialEq)]
pub(super) struct Received {
    pub(super) topic: String,
    pub(super) body: String,
    pub(super) duplicate: bool,
    pub(super) id: [u8; 2],
}

impl Rogue {
    /// Opens a connection, without CONNECT.
    pub(super) fn dial(edge: &Edge) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| format!("dialling {}: {error}", edge.address());
        let mut roots = RootCertStore::empty();
        for certificate in
            CertificateDer::pem_file_iter(edge.trust_bundle()).map_err(|error| failed(&error))?
        {
            roots.add(certificate.map_err(|error| failed(&error))?).map_err(|error| failed(&error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config =
            config.map_err(|error| failed(&error))?.with_root_certificates(roots).with_no_client_auth();
        let name = edge.address().ip().into();
        let client = ClientConnection::new(Arc::new(config), name).map_err(|error| failed(&error))?;
        let socket = TcpStream::connect(edge.address()).map_err(|error| failed(&error))?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(|error| failed(&error))?;
        Ok(Self { stream: StreamOwned::new(client, socket) })
    }

    /// Connects; gives the connection, whether the session is there and CONNACK's code.
    pub(super) fn login(edge: &Edge, login: &Login) -> Result<(Self, bool, u8), Failure> {
        let mut rogue = Self::dial(edge)?;
        rogue.send(&login.packet());
        match rogue.packet()? {
            Some((0x20, body)) if body.len() == 2 => Ok((rogue, body[0] == 1, body[1])),
            other => Err(format!("not a CONNACK: {other:?}")),
        }
    }

    /// Connects as a module should, and subscribes to these filters.
    pub(super) fn connect(edge: &Edge, filters: &[&str]) -> Result<Self, Failure> {
        let (mut rogue, _, code) = Self::login(edge, &Login::new(edge, 3600)?)?;
        assert_eq!(code, 0);
        for filter in filters {
            rogue.send(&packet(0x82, &[&[0, 1], &with_length(filter), &[1]]));
            assert_eq!(rogue.packet()?, Some((0x90, vec![0, 1, 1])));
        }
        Ok(rogue)
    }

    /// Sends bytes; that the other end is gone is found out by reading.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
    }

    /// Publishes with QoS 1 under an id.
    pub(super) fn publish(&mut self, topic: &str, id: u8, body: &[u8]) {
        self.send(&packet(0x32, &[&with_length(topic), &[0, id], body]));
    }

    /// Publishes and waits for the PUBACK.
    pub(super) fn publish_acknowledged(&mut self, topic: &str, body: &[u8]) -> Result<(), Failure> {
        self.publish(topic, 9, body);
        match self.packet()? {
            Some((0x40, id)) if id == [0, 9] => Ok(()),
            other => Err(format!("{topic}: not the PUBACK: {other:?}")),
        }
    }

    /// Acknowledges a message.
    pub(super) fn acknowledge(&mut self, received: &Received) {
        self.send(&packet(0x40, &[&received.id]));
    }

    /// The next packet; `None` if edgeHub has closed the connection.
    pub(super) fn packet(&mut self) -> Result<Option<(u8, Vec<u8>)>, Failure> {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            // Cut, or closed while we were sending.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err("no packet came".to_owned());
            }
            Err(_) => return Ok(None),
        }
        let [first] = byte;
        let (mut length, mut shift) = (0, 0);
        loop {
            self.stream.read_exact(&mut byte).map_err(|error| error.to_string())?;
            length |= usize::from(byte[0] & 0x7F) << shift;
            shift += 7;
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).map_err(|error| error.to_string())?;
        Ok(Some((first, body)))
    }

    /// The next packet, which has to be a PUBLISH with QoS 1.
    pub(super) fn received(&mut self) -> Result<Received, Failure> {
        match self.packet()? {
            Some((first @ (0x32 | 0x3A), packet)) => {
                let length = usize::from(u16::from_be_bytes([packet[0], packet[1]]));
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let (topic, rest) = packet[2..].split_at(length);
                let (id, body) = ([rest[0], rest[1]], text(&rest[2..]));
                Ok(Received { topic: text(topic), body, duplicate: first == 0x3A, id })
            }
            other => Err(format!("not a PUBLISH: {other:?}")),
        }
    }

    /// Whether edgeHub closes the connection, whatever it sends before.
    pub(super) fn is_closed(&mut self) -> Result<(), Failure> {
        while self.packet()?.is_some() {}
        Ok(())
    }
}

/// A packet of these parts.
pub(super) fn packet(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let (mut packet, mut length) = (vec![first], body.len());
    while length > 0x7F {
        packet.push((length & 0x7F) as u8 | 0x80);
        length >>= 7;
    }
    packet.push(length as u8);
    [packet, body].concat()
}

/// A text with its length before it.
pub(super) fn with_length(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
}
