//! The registry's records, in SQL. The only place that names the SQL library.
//!
//! Invariants:
//! - What a method has returned is durable: SQLite runs with a write-ahead log and syncs at every commit, and what a
//!   killed process left is synced before it is read; PostgreSQL does so, whatever its own setting is.
//! - Every change of models and devices is one transaction that holds the write lock of all replicas before it reads,
//!   so two of them never interleave: a deploy and a delete of one version can't both succeed.
//! - A version's number is taken from `models.last_version`, which is never lowered or deleted.
//! - The statements are those that SQLite and PostgreSQL share, save for how a connection and a transaction begin
//!   (`backend.rs`); numbers are BIGINT, truth is 0 or 1, structure is JSON.

mod backend;
mod chunks;
mod commands;
mod devices;
#[cfg(test)]
pub(crate) mod fixture;
mod models;
mod row_files;
mod secrets;
#[cfg(test)]
pub(crate) use devices::tests;

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::any::{AnyPoolOptions, AnyRow};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{Any, AnyConnection, AnyPool, Connection, Executor, Row, SqlSafeStr, Transaction};

use backend::Backend;
pub use chunks::{Registering, Sweeping};
pub use devices::{DeviceRow, Note, Noted};
pub use models::ModelFilter;
pub(crate) use models::check_labels;
pub use row_files::{FileQuery, RowFile};

/// Connections to the database: SQLite writes one at a time anyway, reads are short, and a hundred, which a PostgreSQL
/// allows by itself, have room for a dozen replicas.
const CONNECTIONS: u32 = 8;

/// Longest wait for a connection. A request that waits longer is better refused.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(20);

/// The tables, by the steps in which they came to be.
const MIGRATIONS: [(i64, &str, &str); 3] = [
    (1, "registry", include_str!("store/schema.sql")),
    (2, "attempts", include_str!("store/attempts.sql")),
    (3, "secrets", include_str!("store/secrets.sql")),
];

/// What the registry remembers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: AnyPool,
    backend: Backend,
    chunks: chunks::Local,
}

/// A record that can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL's scheme names a database that this build can't speak to.
    #[error("--database {0}:…: use sqlite:PATH or postgres://USER@HOST/DATABASE")]
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

impl StoreError {
    /// Whether the database can't be reached or is too busy, so that the same may well be done a little later.
    pub fn is_passing(&self) -> bool {
        use sqlx::Error::{Database, Io, PoolTimedOut, Tls};
        match self {
            Self::Sql { source: Io(_) | Tls(_) | PoolTimedOut, .. } => true,
            // PostgreSQL's classes: connections, resources, locks (and what they made roll back), its start and end.
            // SQLite's are numbers, whose low byte says: busy, locked, a disk that fails, a full one.
            Self::Sql { source: Database(error), .. } => error.code().is_some_and(|code| match code.len() {
                5 => ["08", "53", "55P", "40", "57P"].iter().any(|class| code.starts_with(class)),
                _ => code.parse().is_ok_and(|code: u32| [5, 6, 10, 13].contains(&(code & 0xff))),
            }),
            _ => false,
        }
    }
}

impl Store {
    /// Opens the database of `url`, making it where it is a file that is not there, and brings its tables to their
    /// present form: once, though replicas start at the same time.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let scheme = || url.split(':').next().unwrap_or_default().to_owned();
        let backend = Backend::of(url).ok_or_else(|| StoreError::NotBuiltIn(scheme()))?;
        let is_plain_file = backend == Backend::Sqlite && !url.contains('?');
        let url = if is_plain_file { format!("{url}?mode=rwc") } else { url.to_owned() };
        sqlx::any::install_default_drivers();
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(move |connection, _| {
                Box::pin(async move { connection.execute(backend.settings()).await.map(|_| ()) })
            })
            // It shows, too, whether the connection is alive.
            .test_before_acquire(false)
            .before_acquire(|connection, _| Box::pin(async move { Ok(is_clean(connection).await) }))
            .connect(&url)
            .await
            .map_err(sql("opening the database"))?;
        let migration = |(version, name, schema): (i64, &'static str, &'static str)| {
            Migration::new(version, name.into(), MigrationType::Simple, schema.into_sql_str(), false)
        };
        Migrator::with_migrations(MIGRATIONS.map(migration).into()).run(&pool).await?;
        backend.sync(&pool).await.map_err(sql("syncing what is there"))?;
        Ok(Self { pool, backend, chunks: chunks::Local::default() })
    }

    /// Whether other replicas may use it, too.
    pub fn is_shared(&self) -> bool {
        self.backend.is_shared()
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

    /// A transaction that changes models or devices: the only one of all replicas until it ends.
    async fn begin(&self, doing: &'static str) -> Result<Transaction<'static, Any>, StoreError> {
        let mut transaction = self.begin_rows(doing).await?;
        self.backend.lock_writes(&mut transaction).await.map_err(sql(doing))?;
        Ok(transaction)
    }

    /// A transaction that changes streams and their files: its statements say themselves what they rely on, so on
    /// PostgreSQL those of different streams run at the same time.
    async fn begin_rows(&self, doing: &'static str) -> Result<Transaction<'static, Any>, StoreError> {
        self.backend.begin(&self.pool).await.map_err(sql(doing))
    }
}

/// Whether a transaction can begin on a connection, which has none open then. After a commit that failed, on a full disk
/// say, SQLite has rolled back by itself and the driver still counts the transaction: such a connection is replaced.
/// One whose user was gone while PostgreSQL began a transaction has it open still: it is ended.
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
    async fn a_transaction_that_went_wrong_does_not_spoil_its_connection() {
        let (_directory, store) = fixture::empty().await;
        for _ in 0..2 * CONNECTIONS {
            let mut transaction = store.begin("testing").await.unwrap();
            // As SQLite does by itself when its disk is full, and PostgreSQL with all that follows.
            transaction.execute("ROLLBACK").await.unwrap();
            let _ = transaction.execute("SELECT nothing FROM nowhere").await.unwrap_err();
            let _ = transaction.commit().await;
        }
        store.begin("testing").await.unwrap();
    }

    #[tokio::test]
    async fn replicas_that_start_at_the_same_time_make_the_tables_once() {
        let directory = tempfile::tempdir().unwrap();
        let url = fixture::database(directory.path()).await;
        if url.starts_with("sqlite:") {
            // One process has it.
            return;
        }
        let opening = std::iter::repeat_with(|| {
            tokio::spawn({
                let url = url.clone();
                async move { Store::open(&url).await.map(drop) }
            })
        });
        for opened in opening.take(5).collect::<Vec<_>>() {
            opened.await.unwrap().unwrap();
        }
        let store = Store::open(&url).await.unwrap();
        let made = sqlx::query("SELECT version FROM _sqlx_migrations").fetch_all(&store.pool).await.unwrap();
        assert_eq!(made.len(), MIGRATIONS.len());
    }

    #[tokio::test]
    async fn a_foreign_url_is_refused_without_its_password() {
        let error = Store::open("mysql://root:secret@host/x").await.unwrap_err().to_string();
        assert!(
            error.contains("mysql") && error.contains("postgres://") && !error.contains("secret"),
            "{error}"
        );
    }
}
