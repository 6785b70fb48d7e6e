//! What a connection is made with, asked for anew at every connect, so that what expires can be renewed.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::Credentials;

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
