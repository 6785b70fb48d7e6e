//! What all replicas of a registry know and nobody else.

use sqlx::Row;

use super::{Store, StoreError, sql};

impl Store {
    /// The name of the group in which replicas share the broker's messages: made at random by the first that asks.
    pub async fn group(&self) -> Result<String, StoreError> {
        self.secret("group").await.map(|secret| format!("registry-{secret}"))
    }

    /// What tells this database from all others.
    pub async fn id(&self) -> Result<String, StoreError> {
        self.secret("id").await
    }

    async fn secret(&self, name: &str) -> Result<String, StoreError> {
        const DOING: &str = "reading what replicas share";
        let made = uuid::Uuid::new_v4().simple().to_string();
        let insert = "INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
        let insert = sqlx::query(insert).bind(name.to_owned()).bind(made);
        insert.execute(&self.pool).await.map_err(sql(DOING))?;
        let found = sqlx::query("SELECT value FROM secrets WHERE name = $1").bind(name.to_owned());
        let row = found.fetch_one(&self.pool).await.map_err(sql(DOING))?;
        row.try_get("value").map_err(sql(DOING))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fixture;

    #[tokio::test]
    async fn replicas_agree_on_their_group_and_no_two_registries_do() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let url = fixture::database(one.path()).await;
        let open = async |url: &str| Store::open(url).await.unwrap().group().await.unwrap();
        let group = open(&url).await;
        assert_eq!(open(&url).await, group);
        assert_ne!(open(&fixture::database(other.path()).await).await, group);
    }
}
