//! When what is reported is written, and how much of it.
//!
//! Invariants:
//! - One patch is in flight at a time, and [`PAUSE`] lies between two.
//! - A patch is the smallest that leads from what edgeHub has acknowledged to what is wanted. Where that is not known
//!   (a new connection, no answer, a failure) everything is said again, and what may be left there is removed.
//! - What edgeHub refused for what it says is not said again before something changes.
//! - Keys that are not [`reported::KEYS`] are somebody else's and never touched.

use std::time::{Duration, Instant};

use super::{Act, Counts, Request, RequestIds, back_off, reason};
use crate::module::merge::{self, Object};
use crate::module::reported::{self, MAX_PATCH_BYTES};

/// Least time between two patches: IoT Hub throttles twin updates by the device.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Writer {
    ids: RequestIds,
    wanted: Option<Object>,
    /// What edgeHub has of ours; `None` while that was not asked on this connection.
    known: Option<Object>,
    /// Whether `known` may be wrong in what it says, though not in which keys it has.
    unsure: bool,
    in_flight: Option<InFlight>,
    /// What was refused.
    refused: Option<Object>,
    not_before: Option<Instant>,
    failures: u32,
}

#[derive(Debug)]
struct InFlight {
    request: Request,
    patch: Object,
    /// What was wanted when it was made.
    wanted: Option<Object>,
}

impl Writer {
    pub(super) fn new(ids: RequestIds) -> Self {
        Self {
            ids,
            wanted: None,
            known: None,
            unsure: true,
            in_flight: None,
            refused: None,
            not_before: None,
            failures: 0,
        }
    }

    /// The connection is gone.
    pub(super) fn forget(&mut self) {
        self.known = None;
        self.unsure = true;
        self.in_flight = None;
        self.refused = None;
        self.failures = 0;
    }

    /// What edgeHub says that is reported.
    pub(super) fn learn(&mut self, mut reported: Object) {
        // With a patch in flight, it is not known whether this is from before it or after it.
        if self.in_flight.is_none() {
            reported.retain(|key, _| reported::KEYS.contains(&key.as_str()));
            self.known = Some(reported);
        }
    }

    pub(super) fn want(&mut self, wanted: Object) {
        self.wanted = Some(wanted);
    }

    /// The next patch, if it is time for one.
    pub(super) fn step(&mut self, now: Instant) -> Option<Act> {
        if self.in_flight.is_some() || self.not_before.is_some_and(|at| at > now) {
            return None;
        }
        let (patch, whole) = self.patch()?;
        let body = serde_json::to_vec(&patch).unwrap_or_default();
        let request = self.ids.request(now);
        let rid = request.id.clone();
        self.in_flight = Some(InFlight { request, patch, wanted: self.wanted.clone() });
        self.unsure = !whole;
        self.not_before = now.checked_add(PAUSE);
        Some(Act::Patch { rid, body })
    }

    /// Takes an answer; `false` if it is to nothing that was asked here.
    pub(super) fn answered(
        &mut self,
        status: u16,
        rid: &str,
        body: &[u8],
        now: Instant,
        counts: &mut Counts,
    ) -> bool {
        let Some(answered) = self.in_flight.take_if(|sent| sent.request.id == rid) else { return false };
        match status {
            200..300 => {
                self.failures = 0;
                if let Some(known) = &mut self.known {
                    merge::apply(known, &answered.patch);
                }
            }
            429 | 500.. => {
                self.failed(&answered.patch, &format!("status {status}: {}", reason(body)), now, counts)
            }
            _ => {
                counts.refused_reports += 1;
                tracing::warn!(status, why = reason(body), "edgeHub refuses what is reported");
                self.unsure = true;
                self.refused = answered.wanted;
            }
        }
        true
    }

    pub(super) fn tick(&mut self, now: Instant, counts: &mut Counts) {
        if let Some(lost) = self.in_flight.take_if(|sent| sent.request.until <= now) {
            self.failed(&lost.patch, "no answer", now, counts);
        }
    }

    /// Whether there is nothing to say, and nothing under way.
    pub(super) fn is_done(&self) -> bool {
        self.in_flight.is_none() && self.patch().is_none()
    }

    pub(super) fn due(&self) -> Option<Instant> {
        match &self.in_flight {
            Some(sent) => Some(sent.request.until),
            None => self.patch().and(self.not_before),
        }
    }

    /// What there is to say, and whether edgeHub knows all once it is said.
    fn patch(&self) -> Option<(Object, bool)> {
        let (known, wanted) = (self.known.as_ref()?, self.wanted.as_ref()?);
        if self.refused.as_ref() == Some(wanted) {
            return None;
        }
        if !self.unsure {
            return Some((merge::difference(known, wanted), true)).filter(|(patch, _)| !patch.is_empty());
        }
        let all = merge::restatement(known, wanted);
        let bytes = serde_json::to_vec(&all).map_or(usize::MAX, |json| json.len());
        let removal = merge::removal(known, wanted);
        // First what is gone, so that the rest fits.
        if bytes > MAX_PATCH_BYTES && !removal.is_empty() {
            return Some((removal, false));
        }
        Some((all, true))
    }

    /// Whether the patch was applied is not known.
    fn failed(&mut self, patch: &Object, why: &str, now: Instant, counts: &mut Counts) {
        counts.failed_reports += 1;
        let pause = back_off(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.not_before = now.checked_add(pause);
        self.unsure = true;
        if let Some(known) = &mut self.known {
            merge::apply_without_removing(known, patch);
        }
        tracing::warn!(why, again_in = ?pause, "the state could not be reported to the twin");
    }
}
