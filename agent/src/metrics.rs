//! The agent's own metrics: link, spool and deployments, in Prometheus text.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cloud_sync::contract::Ledger;
use tokio::sync::watch;

use crate::deploy::driver::Status;
use crate::link::Link;

/// What writes metrics when they are asked for.
pub type Source = Arc<dyn Fn() -> String + Send + Sync>;

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
        Arc::new(move || {
            let mut text = String::new();
            if let Some((link, status, ledger)) = &self.cloud {
                of_link(&mut text, link);
                of_ledger(&mut text, &ledger.borrow());
                of_deployments(&mut text, &status.borrow());
            }
            self.more.iter().for_each(|source| text.push_str(&source()));
            text
        })
    }
}

/// One metric without labels.
fn single(text: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    head(text, name, kind, help);
    line(text, name, "", value);
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(text: &mut String, name: &str, labels: &str, value: u64) {
    let _ = writeln!(text, "{name}{labels} {value}");
}

fn of_link(text: &mut String, link: &Link) {
    let counters = link.counters();
    let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    single(text, "edgewise_link_up", "gauge", "Whether the cloud is connected.", u64::from(link.is_online()));
    for (name, help, value) in [
        ("edgewise_link_connects_total", "Connections made to the cloud's broker.", get(&counters.connects)),
        ("edgewise_link_received_bytes_total", "Payload bytes received.", get(&counters.received_bytes)),
        ("edgewise_link_sent_bytes_total", "Payload bytes sent.", get(&counters.sent_bytes)),
        (
            "edgewise_link_dropped_total",
            "Messages dropped because their queue was full.",
            get(&counters.dropped),
        ),
        ("edgewise_link_refused_total", "Messages that could not be believed.", link.refused()),
    ] {
        single(text, name, "counter", help, value);
    }
}

fn of_ledger(text: &mut String, ledger: &Ledger) {
    for (name, kind, help, value) in [
        ("edgewise_rows_captured_total", "counter", "Rows captured.", ledger.captured),
        ("edgewise_rows_uploaded_total", "counter", "Rows that the cloud confirmed.", ledger.uploaded),
        ("edgewise_rows_held", "gauge", "Rows on this device's disk.", ledger.held),
        ("edgewise_rows_lost_total", "counter", "Rows in damaged parts of the spool.", ledger.lost),
    ] {
        single(text, name, kind, help, value);
    }
    let name = "edgewise_rows_dropped_total";
    head(text, name, "counter", "Rows given up, by reason.");
    for (reason, rows) in &ledger.dropped {
        line(text, name, &format!("{{reason=\"{reason}\"}}"), *rows);
    }
}

fn of_deployments(text: &mut String, status: &Status) {
    let name = "edgewise_model_phase";
    head(text, name, "gauge", "1 for the phase that the desired version of each model is in.");
    for model in &status.models {
        let phase = format!("{:?}", model.phase).to_lowercase();
        line(
            text,
            name,
            &format!("{{model=\"{}\",version=\"{}\",phase=\"{phase}\"}}", model.name, model.version),
            1,
        );
    }
}
