//! CONNECT: who may come in, and what edgeHub answers to whom it doesn't let in.

use ring::hmac;

use super::packet::Connect;
use super::{DEVICE, HUB_HOST, MODULE, bag, token, topic};
use crate::process::Failure;

/// CONNACK's code for what edgeHub could not make sense of.
const UNAVAILABLE: u8 = 3;
/// CONNACK's code for who is not who they should be.
const NOT_AUTHORISED: u8 = 5;
/// edgeHub closes a silent connection after 600 s, whatever was agreed: 1.5 times this.
const MAX_KEEP_ALIVE: u16 = 400;

/// Why a client is not let in.
pub(super) struct Refused {
    /// CONNACK's code.
    pub(super) code: u8,
    pub(super) why: Failure,
}

/// Decides on a CONNECT; gives when its token ends, in seconds since 1970.
pub(super) fn admit(connect: &Connect, key: &hmac::Key, gateway: &str) -> Result<u64, Refused> {
    let refused = |code, why: String| Refused { code, why };
    if (connect.protocol.as_str(), connect.level) != ("MQTT", 4) {
        return Err(refused(1, format!("protocol {} level {}", connect.protocol, connect.level)));
    }
    let username = connect.username.as_deref().unwrap_or_default();
    check_username(username)
        .map_err(|why| refused(UNAVAILABLE, format!("the user name {username:?}: {why}")))?;
    let id = format!("{DEVICE}/{MODULE}");
    let (_, named) = username.split_once('/').unwrap_or_default();
    if connect.client_id != id || !named.starts_with(&format!("{id}/")) {
        let why = format!("{id} calls itself {:?} and {username:?}", connect.client_id);
        return Err(refused(NOT_AUTHORISED, why));
    }
    let password = connect.password.as_deref().unwrap_or_default();
    token::verify(password, key, gateway).map_err(|why| refused(NOT_AUTHORISED, why))
}

/// What edgeHub takes in a CONNECT, but no module should send.
pub(super) fn findings(connect: &Connect) -> Vec<Failure> {
    let mut findings = vec![];
    if connect.clean_session {
        findings.push("clean session is set: the subscriptions are lost with the connection".to_owned());
    }
    if connect.keep_alive == 0 || connect.keep_alive > MAX_KEEP_ALIVE {
        findings.push(format!("a keep alive of {} s: edgeHub closes before its ping", connect.keep_alive));
    }
    if let Some(will) = &connect.will
        && !matches!(topic::parse(&will.topic), Ok(topic::ToHub::Telemetry { .. }))
    {
        findings.push(format!("a will on {:?}, which is not telemetry", will.topic));
    }
    let username = connect.username.as_deref().unwrap_or_default();
    if username.split('/').next() != Some(HUB_HOST) {
        findings.push(format!("the user name {username:?} does not begin with the IoT hub's host"));
    }
    let (_, query) = username.rsplit_once("/?").unwrap_or_default();
    let mut names: Vec<&str> = query.split('&').filter_map(|pair| pair.split('=').next()).collect();
    names.sort_unstable();
    if !matches!(
        names[..],
        ["DeviceClientType", "api-version"] | ["DeviceClientType", "api-version", "model-id"]
    ) {
        findings.push(format!("the user name has the parameters {names:?}"));
    }
    for value in query.split('&').filter_map(|pair| pair.split_once('=')).map(|(_, value)| value) {
        if let Some(c) = bag::unescaped(value) {
            findings.push(format!("{c:?} is not escaped in the user name's {value:?}"));
        }
    }
    findings
}

/// `<host>/<device>/<module>/?api-version=…&DeviceClientType=…`, split at each `/` as edgeHub does.
fn check_username(username: &str) -> Result<(), Failure> {
    let segments: Vec<&str> = username.split('/').collect();
    let [_, _, _, query] = segments[..] else {
        return Err(format!("{} segments, there should be 4", segments.len()));
    };
    let query = query.strip_prefix('?').ok_or("the last segment does not begin with ?")?;
    let version = query.split('&').find_map(|pair| pair.strip_prefix("api-version="));
    if version.is_none_or(str::is_empty) {
        return Err("no api-version".to_owned());
    }
    query.split('&').try_for_each(|pair| bag::unescape(pair).map(drop))
}
