//! The agent's own metrics: link, spool and deployments, in Prometheus text; [`machine`] is what it runs on.

pub mod machine;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cloud_sync::contract::{Ledger, Phase, ReportedModel};
use tokio::sync::watch;

use crate::deploy::driver::Status;
use crate::exposition::{Exposition, Kind};
use crate::link::Link;

/// What writes metrics when they are asked for, on a blocking thread. Must not wait for anybody.
pub type Source = Arc<dyn Fn(&mut Exposition) + Send + Sync>;

/// Where the metrics come from.
#[derive(Default)]
pub struct Metrics {
    cloud: Option<(Link, watch::Receiver<Status>, watch::Receiver<Ledger>)>,
    more: Vec<Source>,
}

impl Metrics {
    /// Adds those of the link to the cloud.
    pub fn watch(&mut self, link: Link, status: watch::Receiver<Status>, ledger: watch::Receiver<Ledger>) {
        self.cloud = Some((link, status, ledger));
    }

    /// Adds another source.
    pub fn add(&mut self, source: Source) {
        self.more.push(source);
    }

    /// All of them, as one source.
    pub fn into_source(self) -> Source {
        Arc::new(move |exposition: &mut Exposition| {
            if let Some((link, status, ledger)) = &self.cloud {
                of_link(exposition, link);
                of_ledger(exposition, &ledger.borrow());
                of_deployments(exposition, &status.borrow().models);
            }
            self.more.iter().for_each(|source| source(exposition));
        })
    }
}

fn of_link(exposition: &mut Exposition, link: &Link) {
    let counters = link.counters().unwrap_or_default();
    let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let up = u64::from(link.is_online());
    exposition.family("edgewise_link_up", Kind::Gauge, "Whether the cloud is connected.").sample(&[], up);
    let help = "Pause before the next attempt to connect to the cloud's broker; 0 while there is none.";
    let pause = Duration::from_millis(get(&counters.pause_ms)).as_secs_f64();
    exposition.family("edgewise_link_retry_seconds", Kind::Gauge, help).sample(&[], pause);
    for (name, help, value) in [
        ("edgewise_link_connects_total", "Connections made to the cloud's broker.", get(&counters.connects)),
        (
            "edgewise_link_failures_total",
            "Connections to the cloud's broker that were lost, and attempts that made none.",
            get(&counters.failures),
        ),
        ("edgewise_link_received_bytes_total", "Payload bytes received.", get(&counters.received_bytes)),
        ("edgewise_link_sent_bytes_total", "Payload bytes sent.", get(&counters.sent_bytes)),
        (
            "edgewise_link_dropped_total",
            "Messages dropped because their queue was full.",
            get(&counters.dropped),
        ),
        ("edgewise_link_refused_total", "Messages that could not be believed.", link.refused()),
    ] {
        exposition.family(name, Kind::Counter, help).sample(&[], value);
    }
}

fn of_ledger(exposition: &mut Exposition, ledger: &Ledger) {
    for (name, kind, help, value) in [
        ("edgewise_rows_captured_total", Kind::Counter, "Rows captured.", ledger.captured),
        ("edgewise_rows_uploaded_total", Kind::Counter, "Rows that the cloud confirmed.", ledger.uploaded),
        ("edgewise_rows_held", Kind::Gauge, "Rows on this device's disk.", ledger.held),
        ("edgewise_rows_lost_total", Kind::Counter, "Rows in damaged parts of the spool.", ledger.lost),
    ] {
        exposition.family(name, kind, help).sample(&[], value);
    }
    let help = "Rows given up, by reason.";
    let mut dropped = exposition.family("edgewise_rows_dropped_total", Kind::Counter, help);
    for (reason, rows) in &ledger.dropped {
        dropped.sample(&[("reason", reason)], rows);
    }
}

fn of_deployments(exposition: &mut Exposition, models: &[ReportedModel]) {
    let help = "1 for the phase that the desired version of each model is in.";
    let mut phases = exposition.family("edgewise_model_phase", Kind::Gauge, help);
    for model in models {
        let phase = name_of(model.phase);
        let version = model.version.to_string();
        phases.sample(&[("model", model.name.as_str()), ("version", &version), ("phase", &phase)], 1);
    }
}

/// The name that the contract gives a phase.
fn name_of(phase: Phase) -> String {
    match serde_json::to_value(phase) {
        Ok(serde_json::Value::String(name)) => name,
        _ => format!("{phase:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_is_called_as_on_the_wire() {
        assert_eq!(name_of(Phase::RolledBack), "rolled-back");
        assert_eq!(name_of(Phase::Active), "active");
    }
}
