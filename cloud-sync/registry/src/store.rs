//! The registry's records, in SQL. The only place that names the SQL library.
//!
//! Invariants:
//! - What a method has returned is durable: SQLite runs with a write-ahead log and syncs at every commit, and what a
//!   killed process left is synced before it is read.
//! - Every change is one transaction that holds the write lock from its first statement, so two of them never
//!   interleave: a deploy and a delete of one version can't both succeed.
//! - A version's number is taken from `models.last_version`, which is never lowered or deleted.
//! - The statements are those that SQLite and PostgreSQL share, save for how a connection and a transaction begin;
//!   numbers are BIGINT, truth is 0 or 1, structure is JSON.

mod commands;
mod devices;
mod models;
mod row_files;
#[cfg(test)]
pub(crate) use devices::tests;

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::any::{AnyPoolOptions, AnyRow};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Any, AnyConnection, AnyPool, Connection, Executor, Row, SqlSafeStr, Transaction};

pub use devices::{DeviceRow, Note, Noted};
pub use models::ModelFilter;
pub(crate) use models::check_labels;
pub use row_files::{FileQuery, RowFile};

/// Connections to the database: SQLite writes one at a time anyway, and reads are short.
const CONNECTIONS: u32 = 8;

/// Longest wait for a connection. A request that waits longer is better refused.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(20);

/// Longest wait of one writer for another, in milliseconds.
const SETTINGS: &str = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 15000;";

/// What the registry remembers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: AnyPool,
}

/// A record that can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL names a database that this build can't speak to.
    #[error("--database {0}: this build speaks to SQLite only; use sqlite:PATH")]
    NotBuiltIn(String),
    /// The database said no.
    #[error("{doing}: {source}")]
    Sql {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: sqlx::Error,
    },
    /// The tables can't be brought to the form that this build needs.
    #[error("preparing the database: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A stored value is not what this build wrote.
    #[error("{doing}: a stored value can't be read: {source}")]
    Json {
        /// What was being done.
        doing: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A number does not fit into the database.
    #[error("{0}: a number is out of range")]
    Range(&'static str),
}

impl Store {
    /// Opens the database of `url`, making it where there is none, and brings its tables to their present form.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        if !url.starts_with("sqlite:") {
            return Err(StoreError::NotBuiltIn(url.to_owned()));
        }
        let url = if url.contains('?') { url.to_owned() } else { format!("{url}?mode=rwc") };
        sqlx::any::install_default_drivers();
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(|connection, _| {
                Box::pin(async move { connection.execute(SETTINGS).await.map(|_| ()) })
            })
            .before_acquire(|connection, _| Box::pin(async move { Ok(is_clean(connection).await) }))
            .connect(&url)
            .await
            .map_err(sql("opening the database"))?;
        let schema = include_str!("store/schema.sql").into_sql_str();
        let first = Migration::new(1, "registry".into(), MigrationType::Simple, schema, false);
        Migrator::with_migrations(vec![first]).run(&pool).await?;
        // A process that was killed in a commit may have left it readable and not synced. Receipts will rest on it.
        let checkpoint = pool.execute("PRAGMA wal_checkpoint(TRUNCATE)").await;
        checkpoint.map_err(sql("syncing what is there"))?;
        Ok(Self { pool })
    }

    /// Whether the database answers.
    pub async fn check(&self) -> Result<(), StoreError> {
        let answer = self.pool.execute("SELECT 1").await;
        answer.map(|_| ()).map_err(sql("asking the database for a sign of life"))
    }

    /// Closes the database once everything that runs on it has ended.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A transaction that holds the write lock: on SQLite a deferred one could fail when it first writes.
    async fn begin(&self, doing: &'static str) -> Result<Transaction<'static, Any>, StoreError> {
        self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(sql(doing))
    }
}

/// Whether a transaction can begin on a connection. After a commit that failed, on a full disk say, it can't: the
/// database has rolled back by itself, and the driver still counts the transaction. Such a connection is replaced.
async fn is_clean(connection: &mut AnyConnection) -> bool {
    match connection.begin_with("BEGIN").await {
        Ok(transaction) => transaction.rollback().await.is_ok(),
        Err(_) => false,
    }
}

fn sql(doing: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| StoreError::Sql { doing, source }
}

fn signed(number: u64, doing: &'static str) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Range(doing))
}

fn unsigned(row: &AnyRow, column: &'static str, doing: &'static str) -> Result<u64, StoreError> {
    let number: i64 = row.try_get(column).map_err(sql(doing))?;
    u64::try_from(number).map_err(|_| StoreError::Range(doing))
}

fn text(row: &AnyRow, column: &'static str, doing: &'static str) -> Result<String, StoreError> {
    row.try_get(column).map_err(sql(doing))
}

fn from_json<T: DeserializeOwned>(text: &str, doing: &'static str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|source| StoreError::Json { doing, source })
}

fn to_json(value: &impl Serialize, doing: &'static str) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|source| StoreError::Json { doing, source })
}

#[cfg(test)]
mod connection_tests {
    use super::*;

    #[tokio::test]
    async fn a_commit_that_failed_does_not_spoil_its_connection() {
        let directory = tempfile::tempdir().unwrap();
        let store =
            Store::open(&format!("sqlite:{}", directory.path().join("t.db").display())).await.unwrap();
        for _ in 0..2 * CONNECTIONS {
            let mut transaction = store.begin("testing").await.unwrap();
            // As the database does by itself when its disk is full.
            transaction.execute("ROLLBACK").await.unwrap();
            assert!(transaction.commit().await.is_err());
        }
        store.begin("testing").await.unwrap();
    }
}
