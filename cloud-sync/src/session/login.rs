//! What a connection is made with, asked for anew at every connect, so that what expires can be renewed.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Credentials;

/// Pause before a login that could not be renewed is asked for again. The connection goes on meanwhile.
const RENEWAL_RETRY: Duration = Duration::from_secs(10);

/// How long a connection whose login is to be renewed waits for a moment at which nothing is on its way: what is then
/// would come twice.
const SETTLE: Duration = Duration::from_secs(2);

/// What one connection is made with.
#[derive(Debug, Clone, Default)]
pub struct Login {
    /// User name and password, where the broker wants them.
    pub credentials: Option<Credentials>,
    /// Authorities that may have signed the broker's certificate, as PEM, in place of those of the options.
    pub authorities: Option<String>,
    /// After this time the connection is closed in order and made again, with a new login.
    pub renew_in: Option<Duration>,
}

/// A login that is on its way, or why there is none now.
pub type PendingLogin = Pin<Box<dyn Future<Output = Result<Login, String>> + Send>>;

/// Who the client says it is.
#[derive(Clone)]
pub enum Identity {
    /// Always the same.
    Fixed(Option<Credentials>),
    /// Asked for at every connect. What it answers may take [`super::LOGIN_TIMEOUT`]; a failure is a connection that
    /// could not be made, and is tried again like one.
    Issued(Arc<dyn Fn() -> PendingLogin + Send + Sync>),
}

impl Identity {
    /// A new login, at most [`super::LOGIN_TIMEOUT`] away.
    pub(super) fn login(&self) -> PendingLogin {
        match self {
            Self::Fixed(credentials) => {
                let login = Login { credentials: credentials.clone(), ..Login::default() };
                Box::pin(std::future::ready(Ok(login)))
            }
            Self::Issued(ask) => {
                let asked = ask();
                Box::pin(async {
                    let late = |_| Err(format!("no login was issued within {:?}", super::LOGIN_TIMEOUT));
                    tokio::time::timeout(super::LOGIN_TIMEOUT, asked).await.unwrap_or_else(late)
                })
            }
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(credentials) => f.debug_tuple("Fixed").field(credentials).finish(),
            Self::Issued(_) => f.write_str("Issued"),
        }
    }
}

/// The renewal of a login, beside the connection that it is for: first the new login, then a quiet moment.
#[derive(Default)]
pub(super) struct Renewal {
    due: Option<Instant>,
    pending: Option<PendingLogin>,
    /// With the moment after which it is no longer waited.
    login: Option<(Login, Instant)>,
}

impl Renewal {
    /// One that is asked for at this moment, or never.
    pub(super) fn due(due: Option<Instant>) -> Self {
        Self { due, ..Self::default() }
    }

    /// The new login, if the connection can be left for it now.
    pub(super) fn take_login(&mut self, is_idle: bool) -> Option<Login> {
        let now = Instant::now();
        self.login.take_if(|(_, latest)| is_idle || *latest <= now).map(|(login, _)| login)
    }

    /// Waits for the next thing to happen, which may be never.
    pub(super) async fn step(&mut self, identity: &Identity) {
        if let Some((_, latest)) = &self.login {
            return tokio::time::sleep_until(*latest).await;
        }
        if self.pending.is_none() {
            match self.due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        }
        match self.pending.get_or_insert_with(|| identity.login()).await {
            Ok(login) => self.login = Some((login, Instant::now() + SETTLE)),
            Err(why) => {
                tracing::warn!(%why, retry_in = ?RENEWAL_RETRY, "the login could not be renewed");
                self.due = Some(Instant::now() + RENEWAL_RETRY);
            }
        }
        self.pending = None;
    }
}
