//! What the service manager (systemd, or whoever speaks its sd_notify(3)) is told: ready, how it is, alive, stopping.
//!
//! Invariants:
//! - `READY=1` is sent once, when the port listens and what served before serves again; what has not come back within
//!   [`PATIENCE`] is named in `STATUS=` and holds up nobody who starts after the agent.
//! - `WATCHDOG=1` is sent from the agent's main loop, and only after the HTTP server has answered a request within half of
//!   the watchdog's time: whoever stands still, the loop, the runtime's threads or the server, no sign of life comes.
//! - The disk is not asked. A slow SD card is no reason to end an agent that scores, and a restart would not mend it.
//! - Without a service manager nothing is done.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use cloud_sync::limits::bounded_text;
use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::http::{Probe, Readiness};
use crate::scorer::Scorer;

/// How long the start waits for what served before. Less than the 90 s after which systemd gives a start up.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often the state is looked at where no watchdog wants to be fed.
const UNWATCHED: Duration = Duration::from_secs(30);

/// How long a service manager that takes no messages may hold up the way out.
const FAREWELL: Duration = Duration::from_secs(1);

/// The service manager.
pub(super) struct Supervisor {
    listens: bool,
    watchdog: Option<Duration>,
}

/// What it is told about.
pub(super) struct Supervised {
    pub(super) readiness: watch::Receiver<Readiness>,
    pub(super) probe: Probe,
    pub(super) scorer: Scorer,
    /// Where the server listens.
    pub(super) address: SocketAddr,
}

impl Supervisor {
    /// The one that started this process, if there is one: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` say so.
    pub(super) fn from_environment() -> Self {
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty());
        // Shorter ones would keep a small board busy with nothing else.
        let watchdog = sd_notify::watchdog_enabled().map(|time| time.max(Duration::from_millis(100)));
        Self { listens, watchdog }
    }

    /// Tells how the agent is, for as long as it is asked.
    pub(super) async fn watch(&self, mut agent: Supervised) -> Infallible {
        if !self.listens {
            return std::future::pending().await;
        }
        let mut told = agent.status();
        tell(format!("STATUS={told}")).await;
        // The sender lives as long as the agent.
        drop(timeout(PATIENCE, agent.readiness.wait_for(|now| now.ready)).await);
        tell("READY=1".to_owned()).await;
        let period = self.watchdog.map_or(UNWATCHED, |time| time / 2);
        let mut due = interval(period);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_due = tokio::select! {
                _ = due.tick() => true,
                Ok(()) = agent.readiness.changed() => false,
            };
            let mut message = String::new();
            if is_due && self.watchdog.is_some() {
                match timeout(period, agent.probe.is_alive()).await {
                    Ok(true) => message += "WATCHDOG=1\n",
                    _ => tracing::error!("the HTTP server does not answer: no sign of life for the watchdog"),
                }
            }
            let status = agent.status();
            if status != told {
                message += &format!("STATUS={status}");
                told = status;
            }
            if !message.is_empty() {
                tell(message).await;
            }
        }
    }

    /// Tells that the agent ends.
    pub(super) async fn stopping(&self) {
        if self.listens {
            let message = "STOPPING=1\nSTATUS=finishing what was taken".to_owned();
            if timeout(FAREWELL, tell(message)).await.is_err() {
                tracing::warn!("the service manager takes no messages");
            }
        }
    }
}

impl Supervised {
    /// One line for people.
    fn status(&self) -> String {
        let readiness = self.readiness.borrow();
        if !readiness.ready {
            return readiness.why.clone();
        }
        let models: Vec<String> = self.scorer.all().iter().map(|live| live.facts.name.to_string()).collect();
        let what = if models.is_empty() { "no model yet".to_owned() } else { models.join(", ") };
        bounded_text(format!("serves {what} at http://{}", self.address))
    }
}

/// Sends a message; the socket blocks while its other end is busy.
async fn tell(message: String) {
    let sent = tokio::task::spawn_blocking(move || sd_notify::notify(&[NotifyState::Custom(&message)])).await;
    if let Ok(Err(error)) = sent {
        tracing::warn!(%error, "telling the service manager");
    }
}
