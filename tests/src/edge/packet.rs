//! MQTT 3.1.1's packets as a server reads and writes them (OASIS Standard, 29 October 2014).
//!
//! What that standard forbids is refused with the reason; what edgeHub forbids beyond it is no matter of this file.

use bytes::{Buf, BytesMut};

use crate::process::Failure;

/// Most bytes of a packet behind its fixed header; edgeHub closes a connection that sends more.
pub(super) const MAX_PACKET_BYTES: usize = 262_144;

/// A packet from a client.
pub(super) enum Packet {
    Connect(Box<Connect>),
    Publish(Publish),
    PubAck(u16),
    Subscribe { id: u16, filters: Vec<(String, u8)> },
    Unsubscribe { id: u16, filters: Vec<String> },
    Ping,
    Disconnect,
}

/// CONNECT.
pub(super) struct Connect {
    pub(super) protocol: String,
    pub(super) level: u8,
    pub(super) clean_session: bool,
    /// Seconds.
    pub(super) keep_alive: u16,
    pub(super) client_id: String,
    pub(super) will: Option<Publish>,
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
}

/// PUBLISH, in either direction.
#[derive(Clone)]
pub(super) struct Publish {
    pub(super) topic: String,
    pub(super) body: Vec<u8>,
    /// 0 to 2.
    pub(super) qos: u8,
    pub(super) duplicate: bool,
    pub(super) retain: bool,
    /// Not 0, but with QoS 0.
    pub(super) id: u16,
}

/// Takes the next packet out of what was read; `None` if it is not there yet as a whole.
pub(super) fn next(buffer: &mut BytesMut) -> Result<Option<Packet>, Failure> {
    let Some((head, length)) = lengths(buffer)? else { return Ok(None) };
    if length > MAX_PACKET_BYTES {
        return Err(format!("a packet of {length} bytes, {MAX_PACKET_BYTES} are allowed"));
    }
    if buffer.len() < head + length {
        return Ok(None);
    }
    let first = buffer.first().copied().unwrap_or_default();
    buffer.advance(head);
    let body = buffer.split_to(length);
    let mut fields = Fields(&body);
    let packet = decode(first >> 4, first & 0x0F, &mut fields)?;
    if fields.0.is_empty() {
        Ok(Some(packet))
    } else {
        Err(format!("{} bytes behind the end of a packet of type {}", fields.0.len(), first >> 4))
    }
}

/// CONNACK.
pub(super) fn connack(session_present: bool, code: u8) -> Vec<u8> {
    vec![0x20, 2, session_present.into(), code]
}

/// PUBACK.
pub(super) fn puback(id: u16) -> Vec<u8> {
    [&[0x40, 2], id.to_be_bytes().as_slice()].concat()
}

/// SUBACK with the QoS that is granted for each filter.
pub(super) fn suback(id: u16, granted: &[u8]) -> Vec<u8> {
    packet(0x90, &[&id.to_be_bytes(), granted])
}

/// UNSUBACK.
pub(super) fn unsuback(id: u16) -> Vec<u8> {
    packet(0xB0, &[&id.to_be_bytes()])
}

/// PINGRESP.
pub(super) fn pong() -> Vec<u8> {
    vec![0xD0, 0]
}

/// PUBLISH.
pub(super) fn publish(publish: &Publish) -> Vec<u8> {
    let Publish { topic, body, qos, duplicate, retain, id } = publish;
    let first = 0x30 | u8::from(*duplicate) << 3 | qos << 1 | u8::from(*retain);
    let id = id.to_be_bytes();
    let id: &[u8] = if *qos > 0 { &id } else { &[] };
    let length = u16::try_from(topic.len()).unwrap_or(u16::MAX).to_be_bytes();
    packet(first, &[&length, topic.as_bytes(), id, body])
}

fn packet(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length: usize = parts.iter().map(|part| part.len()).sum();
    loop {
        let more = if length > 0x7F { 0x80 } else { 0 };
        packet.push((length & 0x7F) as u8 | more);
        length >>= 7;
        if length == 0 {
            break;
        }
    }
    parts.iter().for_each(|part| packet.extend_from_slice(part));
    packet
}

/// The lengths of the fixed header and of what follows it.
fn lengths(buffer: &[u8]) -> Result<Option<(usize, usize)>, Failure> {
    let mut length = 0;
    for (index, byte) in buffer.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((index + 2, length)));
        }
    }
    if buffer.len() > 4 { Err("a remaining length of more than 4 bytes".to_owned()) } else { Ok(None) }
}

fn decode(kind: u8, flags: u8, fields: &mut Fields<'_>) -> Result<Packet, Failure> {
    let expected = match kind {
        3 => flags,
        8 | 10 => 2,
        _ => 0,
    };
    if flags != expected {
        return Err(format!("a packet of type {kind} with the reserved flags {flags:04b}"));
    }
    match kind {
        1 => connect(fields).map(Box::new).map(Packet::Connect),
        3 => {
            let (qos, duplicate, retain) = (flags >> 1 & 3, flags & 8 != 0, flags & 1 != 0);
            let topic = fields.text("topic")?;
            let id = if qos > 0 { fields.id()? } else { 0 };
            let body = fields.rest().to_vec();
            Ok(Packet::Publish(Publish { topic, body, qos, duplicate, retain, id }))
        }
        4 => Ok(Packet::PubAck(fields.id()?)),
        8 => {
            let (id, mut filters) = (fields.id()?, vec![]);
            while !fields.0.is_empty() {
                filters.push((fields.text("filter")?, fields.byte()?));
            }
            match filters.iter().find(|(_, qos)| *qos > 2) {
                Some((filter, qos)) => Err(format!("a SUBSCRIBE to {filter} with QoS {qos}")),
                None if filters.is_empty() => Err("a SUBSCRIBE without a filter".to_owned()),
                None => Ok(Packet::Subscribe { id, filters }),
            }
        }
        10 => {
            let (id, mut filters) = (fields.id()?, vec![]);
            while !fields.0.is_empty() {
                filters.push(fields.text("filter")?);
            }
            Ok(Packet::Unsubscribe { id, filters })
        }
        12 => Ok(Packet::Ping),
        14 => Ok(Packet::Disconnect),
        _ => Err(format!("a packet of type {kind}, which no client sends with QoS 0 and 1")),
    }
}

fn connect(fields: &mut Fields<'_>) -> Result<Connect, Failure> {
    let (protocol, level, flags) = (fields.text("protocol name")?, fields.byte()?, fields.byte()?);
    let has = |bit: u8| flags & 1 << bit != 0;
    let keep_alive = fields.number()?;
    let client_id = fields.text("client id")?;
    let will = if has(2) {
        let (topic, body) = (fields.text("will's topic")?, fields.bytes()?.to_vec());
        Some(Publish { topic, body, qos: flags >> 3 & 3, duplicate: false, retain: has(5), id: 0 })
    } else {
        None
    };
    let username = if has(7) { Some(fields.text("user name")?) } else { None };
    let password = if has(6) { Some(fields.text("password")?) } else { None };
    if has(0) {
        return Err("a CONNECT with its reserved flag".to_owned());
    }
    Ok(Connect { protocol, level, clean_session: has(1), keep_alive, client_id, will, username, password })
}

/// What of a packet has not been read yet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Failure> {
        let (taken, rest) =
            self.0.split_at_checked(length).ok_or_else(|| "a packet that ends too soon".to_owned())?;
        self.0 = rest;
        Ok(taken)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn byte(&mut self) -> Result<u8, Failure> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    fn number(&mut self) -> Result<u16, Failure> {
        Ok(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    fn id(&mut self) -> Result<u16, Failure> {
        match self.number()? {
            0 => Err("a packet with the id 0".to_owned()),
            id => Ok(id),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], Failure> {
        let length = self.number()?;
        self.take(length.into())
    }

    fn text(&mut self, what: &str) -> Result<String, Failure> {
        let bytes = self.bytes()?;
        let text =
            std::str::from_utf8(bytes).map_err(|error| format!("a {what} that is not UTF-8: {error}"))?;
        if text.contains('\0') { Err(format!("a {what} with U+0000")) } else { Ok(text.to_owned()) }
    }
}
