//! What SQLite and PostgreSQL do not share: how a connection is set up, and how a change has the database to itself.

use sqlx::{Any, AnyPool, Executor, Row, Transaction};

/// The writers of all replicas, one after the other: as SQLite has it by itself. Serialisable transactions would let
/// more of them run at once, and each of them would have to be ready to run again; the changes that need this are
/// short and seldom, and what is frequent, rows, does without: see [`super::Store::begin_rows`].
const WRITE_LOCK: &str = "SELECT pg_advisory_xact_lock(1701078885, 1)";

/// Held by each registration of all replicas, until its version is seen.
const CHUNKS_STAY: &str = "SELECT pg_advisory_xact_lock_shared(1701078885, 2)";

/// Held by the one that sweeps, if no registration holds the other: it can be tried again at any time.
const CHUNKS_GO: &str = "SELECT CAST(pg_try_advisory_xact_lock(1701078885, 2) AS INT) AS held";

/// Which database it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    Sqlite,
    Postgres,
}

impl Backend {
    /// The database that a URL names.
    pub(super) fn of(url: &str) -> Option<Self> {
        match url.split_once(':')?.0 {
            "sqlite" => Some(Self::Sqlite),
            "postgres" | "postgresql" => Some(Self::Postgres),
            _ => None,
        }
    }

    /// What is said to each new connection. A commit that has returned is on the medium, and no wait of one writer for
    /// another is longer than 15 s. PostgreSQL drops the locks of a machine that is gone within a minute, whatever the
    /// server's own settings are.
    pub(super) fn settings(self) -> &'static str {
        match self {
            Self::Sqlite => {
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 15000;"
            }
            Self::Postgres => {
                "SET application_name = 'edgewise'; SET synchronous_commit = on; SET lock_timeout = '15s'; \
                 SET idle_in_transaction_session_timeout = 0; SET tcp_keepalives_idle = 30; \
                 SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3;"
            }
        }
    }

    /// Has on the medium what a process that was killed in a commit left readable and not synced: receipts will rest on it.
    pub(super) async fn sync(self, pool: &AnyPool) -> sqlx::Result<()> {
        match self {
            Self::Sqlite => pool.execute("PRAGMA wal_checkpoint(TRUNCATE)").await.map(|_| ()),
            Self::Postgres => Ok(()), // The server does it when it starts.
        }
    }

    /// A transaction in which each statement sees what was committed before it. On SQLite it holds the write lock from
    /// its first statement: a deferred one could fail when it first writes.
    pub(super) async fn begin(self, pool: &AnyPool) -> sqlx::Result<Transaction<'static, Any>> {
        match self {
            Self::Sqlite => pool.begin_with("BEGIN IMMEDIATE").await,
            Self::Postgres => pool.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await,
        }
    }

    /// Has the transaction be the only one that changes anything, in all replicas.
    pub(super) async fn lock_writes(self, transaction: &mut Transaction<'static, Any>) -> sqlx::Result<()> {
        match self {
            Self::Sqlite => Ok(()),
            Self::Postgres => transaction.execute(WRITE_LOCK).await.map(|_| ()),
        }
    }

    /// Whether several processes may use the database.
    pub(super) fn is_shared(self) -> bool {
        self == Self::Postgres
    }

    /// Has no replica sweep chunks until the transaction ends.
    pub(super) async fn keep_chunks(transaction: &mut Transaction<'static, Any>) -> sqlx::Result<()> {
        // A sweep lists every chunk that there is, which may take its time.
        transaction.execute("SET LOCAL lock_timeout = '10min'").await?;
        transaction.execute(CHUNKS_STAY).await?;
        transaction.execute("SET LOCAL lock_timeout = '15s'").await.map(|_| ())
    }

    /// Has no replica register or sweep until the transaction ends; false where one does.
    pub(super) async fn sweep_chunks(transaction: &mut Transaction<'static, Any>) -> sqlx::Result<bool> {
        let held: i32 = transaction.fetch_one(CHUNKS_GO).await?.try_get("held")?;
        Ok(held == 1)
    }
}
