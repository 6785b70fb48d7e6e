//! Model versions: their numbers, records and labels.

use cloud_sync::digest::Digest;
use cloud_sync::name::{ModelName, ModelVersion};
use futures_util::TryStreamExt;
use sqlx::query;

use super::{Registering, Store, StoreError, from_json, signed, sql, text, to_json, unsigned};
use crate::api::{Holder, LabelChange, ModelRecord};
use crate::error::RegistryError;

/// Most tags and most properties of one version: they stand in every listing.
const MAX_LABELS: usize = 64;

/// Most holders that a refusal names; the rest would not be read.
const MAX_HOLDERS: i64 = 100;

/// Which versions to list. Empty fields ask for nothing.
#[derive(Debug, Clone, Default)]
pub struct ModelFilter {
    /// Of this model only.
    pub name: Option<ModelName>,
    /// The latest version of each model only.
    pub latest: bool,
    /// With these tags: a key, or a key and its value.
    pub tags: Vec<(String, Option<String>)>,
    /// With these properties.
    pub properties: Vec<(String, Option<String>)>,
    /// After this version, in the order of name and version.
    pub after: Option<ModelVersion>,
}

impl Registering {
    /// Stores the version under the next number of its model, and returns it with that number.
    pub async fn add_version(mut self, mut record: ModelRecord) -> Result<ModelRecord, StoreError> {
        const DOING: &str = "storing a model version";
        let mut transaction = self.transaction(DOING).await?;
        let next = query(
            "INSERT INTO models (name, last_version) VALUES ($1, 1) \
             ON CONFLICT (name) DO UPDATE SET last_version = models.last_version + 1 RETURNING last_version",
        );
        let next = next.bind(record.name.clone()).fetch_one(&mut *transaction).await.map_err(sql(DOING))?;
        record.version = unsigned(&next, "last_version", DOING)?;
        record.id = format!("{}:{}", record.name, record.version);
        query("INSERT INTO versions (name, version, digest, size, record) VALUES ($1, $2, $3, $4, $5)")
            .bind(record.name.clone())
            .bind(signed(record.version, DOING)?)
            .bind(record.digest.clone())
            .bind(signed(record.size, DOING)?)
            .bind(to_json(&record, DOING)?)
            .execute(&mut *transaction)
            .await
            .map_err(sql(DOING))?;
        transaction.commit().await.map_err(sql(DOING))?;
        Ok(record)
    }
}

impl Store {
    #[cfg(test)]
    pub(crate) async fn add_version(&self, record: ModelRecord) -> Result<ModelRecord, StoreError> {
        self.registering().await?.add_version(record).await
    }

    /// A version's record.
    pub async fn version(&self, id: &ModelVersion) -> Result<Option<ModelRecord>, StoreError> {
        const DOING: &str = "reading a model version";
        let found = query("SELECT record FROM versions WHERE name = $1 AND version = $2")
            .bind(id.name.to_string())
            .bind(signed(id.version, DOING)?)
            .fetch_optional(&self.pool)
            .await
            .map_err(sql(DOING))?;
        found.map(|row| from_json(&text(&row, "record", DOING)?, DOING)).transpose()
    }

    /// The number of a model's latest version.
    pub async fn latest(&self, name: &ModelName) -> Result<Option<u64>, StoreError> {
        const DOING: &str = "looking for a model's latest version";
        let found = query("SELECT version FROM versions WHERE name = $1 ORDER BY version DESC LIMIT 1")
            .bind(name.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(sql(DOING))?;
        found.map(|row| unsigned(&row, "version", DOING)).transpose()
    }

    /// At most `limit` versions in the order of name and version, and whether there are more.
    pub async fn list(
        &self,
        filter: &ModelFilter,
        limit: usize,
    ) -> Result<(Vec<ModelRecord>, bool), StoreError> {
        const DOING: &str = "listing model versions";
        let (after, after_version) = match &filter.after {
            Some(after) => (after.name.to_string(), signed(after.version, DOING)?),
            None => (String::new(), 0),
        };
        let mut rows = query(
            "SELECT record FROM versions WHERE ($1 = '' OR name = $1) \
             AND (name > $2 OR (name = $2 AND version > $3)) \
             AND ($4 = 0 OR version = (SELECT MAX(version) FROM versions AS others WHERE others.name = versions.name)) \
             ORDER BY name, version",
        )
        .bind(filter.name.as_ref().map(ToString::to_string).unwrap_or_default())
        .bind(after)
        .bind(after_version)
        .bind(i64::from(filter.latest))
        .fetch(&self.pool);
        let mut page = Vec::new();
        while let Some(row) = rows.try_next().await.map_err(sql(DOING))? {
            let record: ModelRecord = from_json(&text(&row, "record", DOING)?, DOING)?;
            if !filter.labels_match(&record) {
                continue;
            }
            if page.len() == limit {
                return Ok((page, true));
            }
            page.push(record);
        }
        Ok((page, false))
    }

    /// Sets tags and adds properties.
    pub async fn label(&self, id: &ModelVersion, change: &LabelChange) -> Result<ModelRecord, RegistryError> {
        const DOING: &str = "changing a model version's labels";
        let mut transaction = self.begin(DOING).await?;
        let found = query("SELECT record FROM versions WHERE name = $1 AND version = $2")
            .bind(id.name.to_string())
            .bind(signed(id.version, DOING)?)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(sql(DOING))?;
        let row = found.ok_or_else(|| RegistryError::no_version(id))?;
        let mut record: ModelRecord = from_json(&text(&row, "record", DOING)?, DOING)?;
        for (key, value) in &change.tags {
            match value {
                Some(value) => record.tags.insert(key.clone(), value.clone()),
                None => record.tags.remove(key),
            };
        }
        for (key, value) in &change.properties {
            let present = record.properties.entry(key.clone()).or_insert_with(|| value.clone());
            if present != value {
                return Err(RegistryError::Conflict(format!(
                    "property {key} of {id} is {present:?} and can't be changed; use a tag for what may change"
                )));
            }
        }
        check_labels(&record)?;
        query("UPDATE versions SET record = $1 WHERE name = $2 AND version = $3")
            .bind(to_json(&record, DOING)?)
            .bind(id.name.to_string())
            .bind(signed(id.version, DOING)?)
            .execute(&mut *transaction)
            .await
            .map_err(sql(DOING))?;
        transaction.commit().await.map_err(sql(DOING))?;
        Ok(record)
    }

    /// Deletes a version that no device desires, runs or keeps.
    pub async fn delete_version(&self, id: &ModelVersion) -> Result<(), RegistryError> {
        const DOING: &str = "deleting a model version";
        let mut transaction = self.begin(DOING).await?;
        let held = query(
            "SELECT device, why FROM holdings WHERE name = $1 AND version = $2 ORDER BY device, why LIMIT $3",
        )
        .bind(id.name.to_string())
        .bind(signed(id.version, DOING)?)
        .bind(MAX_HOLDERS)
        .fetch_all(&mut *transaction)
        .await
        .map_err(sql(DOING))?;
        let holders: Vec<Holder> = held
            .iter()
            .map(|row| Ok(Holder { device: text(row, "device", DOING)?, why: text(row, "why", DOING)? }))
            .collect::<Result<_, StoreError>>()?;
        if !holders.is_empty() {
            return Err(RegistryError::InUse { version: id.to_string(), holders });
        }
        let deleted = query("DELETE FROM versions WHERE name = $1 AND version = $2")
            .bind(id.name.to_string())
            .bind(signed(id.version, DOING)?)
            .execute(&mut *transaction)
            .await
            .map_err(sql(DOING))?;
        if deleted.rows_affected() == 0 {
            return Err(RegistryError::no_version(id));
        }
        transaction.commit().await.map_err(sql(DOING))?;
        Ok(())
    }

    /// The digest of every bundle that a version stands for.
    pub async fn bundle_digests(&self) -> Result<Vec<Digest>, StoreError> {
        const DOING: &str = "listing bundles";
        let rows =
            query("SELECT DISTINCT digest FROM versions").fetch_all(&self.pool).await.map_err(sql(DOING))?;
        rows.iter()
            .map(|row| text(row, "digest", DOING)?.parse().map_err(|_| StoreError::Range(DOING)))
            .collect()
    }
}

impl ModelFilter {
    fn labels_match(&self, record: &ModelRecord) -> bool {
        let matches = |labels: &crate::api::Labels, wanted: &[(String, Option<String>)]| {
            wanted.iter().all(|(key, value)| match (labels.get(key), value) {
                (Some(present), Some(value)) => present == value,
                (present, None) => present.is_some(),
                (None, Some(_)) => false,
            })
        };
        matches(&record.tags, &self.tags) && matches(&record.properties, &self.properties)
    }
}

/// Refuses a record with more labels than one version may have, or longer ones.
pub(crate) fn check_labels(record: &ModelRecord) -> Result<(), RegistryError> {
    for (what, labels) in [("tags", &record.tags), ("properties", &record.properties)] {
        if labels.len() > MAX_LABELS {
            return Err(RegistryError::Invalid(format!(
                "{} {what} are more than {MAX_LABELS}",
                labels.len()
            )));
        }
        let wrong = |(key, value): &(&String, &String)| {
            key.is_empty() || key.len() > 128 || key.contains(['=', ',']) || value.len() > 1024
        };
        if let Some((key, _)) = labels.iter().find(wrong) {
            return Err(RegistryError::Invalid(format!(
                "{key:?} can't be one of the {what}: a key has 1 to 128 bytes without '=' and ',', a value at most 1024"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Note;
    use crate::store::devices::tests::report;
    use crate::store::fixture::{database, empty};

    fn record(name: &str) -> ModelRecord {
        ModelRecord {
            name: name.to_owned(),
            digest: Digest::of(b"bundle").to_string(),
            ..crate::store::devices::tests::empty_record()
        }
    }

    fn id(text: &str) -> ModelVersion {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn a_number_is_never_given_twice() {
        let directory = tempfile::tempdir().unwrap();
        let url = database(directory.path()).await;
        let store = Store::open(&url).await.unwrap();
        assert_eq!(store.add_version(record("load")).await.unwrap().version, 1);
        assert_eq!(store.add_version(record("load")).await.unwrap().id, "load:2");
        store.delete_version(&id("load:2")).await.unwrap();
        store.delete_version(&id("load:1")).await.unwrap();
        store.close().await;
        let again = Store::open(&url).await.unwrap();
        assert_eq!(again.add_version(record("load")).await.unwrap().version, 3);
        assert!(again.version(&id("load:2")).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn many_registrations_at_once_get_different_numbers() {
        let (_directory, store) = empty().await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let store = store.clone();
            tasks.spawn(async move { store.add_version(record("load")).await.unwrap().version });
        }
        let mut numbers = tasks.join_all().await;
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=20).collect::<Vec<u64>>());
    }

    #[tokio::test]
    async fn properties_are_only_added_and_tags_are_replaced() {
        let (_directory, store) = empty().await;
        store.add_version(record("load")).await.unwrap();
        let change = |text: &str| serde_json::from_str::<LabelChange>(text).unwrap();
        let first = change(r#"{"tags": {"stage": "test", "gone": "x"}, "properties": {"commit": "a1"}}"#);
        store.label(&id("load:1"), &first).await.unwrap();
        let second = change(
            r#"{"tags": {"stage": "field", "gone": null}, "properties": {"commit": "a1", "run": "7"}}"#,
        );
        let record = store.label(&id("load:1"), &second).await.unwrap();
        assert_eq!(record.tags, [("stage".to_owned(), "field".to_owned())].into());
        assert_eq!(record.properties.len(), 2);
        let changed = store.label(&id("load:1"), &change(r#"{"properties": {"commit": "b2"}}"#)).await;
        assert!(matches!(changed, Err(RegistryError::Conflict(_))), "{changed:?}");
        assert_eq!(store.version(&id("load:1")).await.unwrap().unwrap().properties["commit"], "a1");
    }

    #[tokio::test]
    async fn lists_filter_and_page() {
        let (_directory, store) = empty().await;
        for (name, stage) in [("a", "x"), ("a", "y"), ("b", "x")] {
            let tags = [("stage".to_owned(), stage.to_owned())].into();
            store.add_version(ModelRecord { tags, ..record(name) }).await.unwrap();
        }
        let ids = async |filter: ModelFilter, limit| {
            let (page, more) = store.list(&filter, limit).await.unwrap();
            (page.into_iter().map(|record| record.id).collect::<Vec<_>>(), more)
        };
        assert_eq!(ids(ModelFilter::default(), 2).await, (vec!["a:1".into(), "a:2".into()], true));
        let after = ModelFilter { after: Some(id("a:2")), ..Default::default() };
        assert_eq!(ids(after, 2).await, (vec!["b:1".into()], false));
        let latest = ModelFilter { latest: true, ..Default::default() };
        assert_eq!(ids(latest, 9).await.0, ["a:2", "b:1"]);
        let tagged = ModelFilter { tags: vec![("stage".into(), Some("x".into()))], ..Default::default() };
        assert_eq!(ids(tagged, 9).await.0, ["a:1", "b:1"]);
        let missing = ModelFilter { tags: vec![("none".into(), None)], ..Default::default() };
        assert!(ids(missing, 9).await.0.is_empty());
    }

    #[tokio::test]
    async fn what_a_device_needs_is_not_deleted() {
        let (_directory, store) = empty().await;
        for _ in 0..3 {
            store.add_version(record("load")).await.unwrap();
        }
        let device: cloud_sync::name::DeviceId = "d1".parse().unwrap();
        let devices = std::slice::from_ref(&device);
        store.deploy(devices, &id("load:3"), &Default::default()).await.unwrap();
        store
            .note(&[Note::Reported(device.clone(), Box::new(report("load", 3, Some(2), Some(1))))], 5)
            .await
            .unwrap();
        for (version, why) in [("load:3", "desired"), ("load:2", "active"), ("load:1", "previous")] {
            match store.delete_version(&id(version)).await {
                Err(RegistryError::InUse { holders, .. }) => {
                    assert_eq!(holders, [Holder { device: "d1".into(), why: why.into() }]);
                }
                other => panic!("{other:?}"),
            }
        }
        store.undeploy(devices, &"load".parse().unwrap()).await.unwrap();
        store.note(&[Note::Reported(device, Box::new(report("load", 3, None, None)))], 6).await.unwrap();
        store.delete_version(&id("load:3")).await.unwrap();
    }

    #[tokio::test]
    async fn a_deploy_and_a_delete_never_both_succeed() {
        let (_directory, store) = empty().await;
        let device: cloud_sync::name::DeviceId = "d1".parse().unwrap();
        for round in 1..=20 {
            store.add_version(record("load")).await.unwrap();
            let id = id(&format!("load:{round}"));
            let settings = Default::default();
            let devices = std::slice::from_ref(&device);
            let (deployed, deleted) =
                tokio::join!(store.deploy(devices, &id, &settings), store.delete_version(&id));
            assert!(deployed.is_ok() != deleted.is_ok(), "{deployed:?} {deleted:?}");
        }
    }
}
