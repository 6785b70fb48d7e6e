//! A database for a test: a file of SQLite, or one of its own in the PostgreSQL that `EDGEWISE_TEST_DATABASE` names, so
//! that every test of what stands on the records can be run on both (`tests/run` does).

use std::path::Path;

use sqlx::{AnyConnection, AssertSqlSafe, Connection, Executor};

use super::Store;

/// The URL of an empty database; a file lies in `directory`.
pub(crate) async fn database(directory: &Path) -> String {
    let Ok(server) = std::env::var("EDGEWISE_TEST_DATABASE") else {
        return format!("sqlite:{}", directory.join("test.db").display());
    };
    sqlx::any::install_default_drivers();
    let name = format!("test_{}", uuid::Uuid::new_v4().simple());
    let mut connection = AnyConnection::connect(&server).await.unwrap();
    connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
    connection.close().await.unwrap();
    format!("{server}&dbname={name}")
}

/// A store in an empty database.
pub(crate) async fn empty() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&database(directory.path()).await).await.unwrap();
    (directory, store)
}
