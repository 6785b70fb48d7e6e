//! Devices: what each shall run, what it says it runs, and who holds which version.

use cloud_sync::contract::{Desired, DesiredModel, ModelSettings, Presence, Reported};
use cloud_sync::limits::{MAX_MODELS, MAX_REVISIONS_AHEAD};
use cloud_sync::name::{DeviceId, ModelName, ModelVersion};
use sqlx::any::AnyRow;
use sqlx::{Any, Row, Transaction, query};

use super::{Store, StoreError, from_json, signed, sql, text, to_json, unsigned};
use crate::api::{DesiredRevision, ModelRecord};
use crate::error::RegistryError;

/// Most devices of one registry: whoever may publish can invent names, and each costs a row.
const MAX_DEVICES: i64 = 100_000;

/// What a device said of itself.
#[derive(Debug, Clone)]
pub enum Note {
    /// That it is there, or the broker that it is gone.
    Presence(DeviceId, Presence),
    /// What it runs.
    Reported(DeviceId, Box<Reported>),
}

/// What became of notes.
#[derive(Debug, Default)]
pub struct Noted {
    /// Devices that follow an older desired state than theirs.
    pub behind: Vec<DeviceId>,
    /// Notes that could not be kept; the log says why.
    pub lost: u64,
}

/// A device's row.
#[derive(Debug, Clone)]
pub struct DeviceRow {
    /// The device.
    pub id: String,
    /// What it was told.
    pub desired: Desired,
    /// Whether it is connected.
    pub online: bool,
    /// What it last said of its presence.
    pub presence: Option<Presence>,
    /// What it last reported.
    pub reported: Option<Reported>,
    /// When it last said something, in milliseconds since 1970.
    pub seen_ms: Option<u64>,
    /// Rows of it that were refused.
    pub rows_refused: u64,
}

/// A query for the rows of devices, with what stands in other tables of each.
macro_rules! select_devices {
    ($rest:literal) => {
        concat!(
            "SELECT devices.*, (SELECT CAST(COALESCE(SUM(refused), 0) AS BIGINT) FROM streams ",
            "WHERE streams.device = devices.id) AS refused FROM devices ",
            $rest
        )
    };
}

impl Store {
    /// Tells devices to run a version, in place of any other version of that model.
    pub async fn deploy(
        &self,
        devices: &[DeviceId],
        version: &ModelVersion,
        settings: &ModelSettings,
    ) -> Result<Vec<DesiredRevision>, RegistryError> {
        const DOING: &str = "deploying a model version";
        let mut transaction = self.begin(DOING).await?;
        let found = query("SELECT record FROM versions WHERE name = $1 AND version = $2")
            .bind(version.name.to_string())
            .bind(signed(version.version, DOING)?)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(sql(DOING))?;
        let row = found.ok_or_else(|| RegistryError::no_version(version))?;
        let record: ModelRecord = from_json(&text(&row, "record", DOING)?, DOING)?;
        let wanted = DesiredModel {
            name: version.name.clone(),
            version: version.version,
            digest: record.digest.parse().map_err(|_| StoreError::Range(DOING))?,
            size: record.size,
            deployment: 0,
            signature: None,
            settings: settings.clone(),
        };
        let mut revisions = Vec::new();
        for device in devices {
            let (mut models, revision) = told(&mut transaction, device, DOING).await?;
            models.retain(|model| model.name != version.name);
            models.push(DesiredModel { deployment: revision, ..wanted.clone() });
            if models.len() > MAX_MODELS {
                return Err(RegistryError::Conflict(format!(
                    "{device} has {MAX_MODELS} models, which is the most; undeploy one first"
                )));
            }
            revisions.push(set_desired(&mut transaction, device, revision, &models, DOING).await?);
        }
        transaction.commit().await.map_err(sql(DOING))?;
        Ok(revisions)
    }

    /// Tells devices to run a model no more.
    pub async fn undeploy(
        &self,
        devices: &[DeviceId],
        name: &ModelName,
    ) -> Result<Vec<DesiredRevision>, RegistryError> {
        const DOING: &str = "undeploying a model";
        let mut transaction = self.begin(DOING).await?;
        let mut revisions = Vec::new();
        for device in devices {
            let (mut models, revision) = told(&mut transaction, device, DOING).await?;
            let before = models.len();
            models.retain(|model| model.name != *name);
            if models.len() == before {
                return Err(RegistryError::NotFound(format!("{name} is not deployed to {device}")));
            }
            revisions.push(set_desired(&mut transaction, device, revision, &models, DOING).await?);
        }
        transaction.commit().await.map_err(sql(DOING))?;
        Ok(revisions)
    }

    /// What a device was told; none for one that was never told anything.
    pub async fn desired(&self, device: &DeviceId) -> Result<Option<Desired>, StoreError> {
        Ok(self.device(device).await?.map(|row| row.desired).filter(|desired| desired.revision > 0))
    }

    /// Every device that was ever told something.
    pub async fn deployed_devices(&self) -> Result<Vec<DeviceId>, StoreError> {
        const DOING: &str = "listing devices with a desired state";
        let rows = query("SELECT id FROM devices WHERE revision > 0 ORDER BY id").fetch_all(&self.pool).await;
        let device = |row: &AnyRow| text(row, "id", DOING)?.parse().map_err(|_| StoreError::Range(DOING));
        rows.map_err(sql(DOING))?.iter().map(device).collect()
    }

    /// At most `limit` devices in the order of their ids, after `after`.
    pub async fn devices(&self, after: &str, limit: i64) -> Result<Vec<DeviceRow>, StoreError> {
        const DOING: &str = "listing devices";
        let rows = query(select_devices!("WHERE id > $1 ORDER BY id LIMIT $2"))
            .bind(after.to_owned())
            .bind(limit)
            .fetch_all(&self.pool)
            .await;
        rows.map_err(sql(DOING))?.iter().map(|row| device_row(row, DOING)).collect()
    }

    /// One device.
    pub async fn device(&self, device: &DeviceId) -> Result<Option<DeviceRow>, StoreError> {
        const DOING: &str = "reading a device";
        let found = query(select_devices!("WHERE id = $1"))
            .bind(device.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(sql(DOING))?;
        found.map(|row| device_row(&row, DOING)).transpose()
    }

    /// Keeps what devices said, the last word of each. One that can't be kept costs none of the others. An error means
    /// that nothing is kept and all may be kept a little later.
    pub async fn note(&self, notes: &[Note], now_ms: u64) -> Result<Noted, StoreError> {
        let error = match self.note_all(notes, now_ms).await {
            Ok(behind) => return Ok(Noted { behind, lost: 0 }),
            Err(error) if error.is_passing() => return Err(error),
            Err(error) => error,
        };
        tracing::warn!(%error, notes = notes.len(), "what devices report is kept one by one");
        let mut noted = Noted::default();
        for note in notes {
            match self.note_all(std::slice::from_ref(note), now_ms).await {
                Ok(behind) => noted.behind.extend(behind),
                Err(error) => {
                    tracing::error!(device = %note.device(), %error, "what a device reports is not kept");
                    noted.lost += 1;
                }
            }
        }
        Ok(noted)
    }

    /// Keeps all notes or none; returns the devices that follow an older desired state than theirs.
    async fn note_all(&self, notes: &[Note], now_ms: u64) -> Result<Vec<DeviceId>, StoreError> {
        const DOING: &str = "keeping what devices report";
        let mut behind = Vec::new();
        let mut transaction = self.begin(DOING).await?;
        for note in notes {
            let device = note.device();
            ensure_device(&mut transaction, device, DOING).await?;
            let update = match note {
                Note::Presence(_, presence) => {
                    query("UPDATE devices SET seen_ms = $1, presence = $3, online = $4 WHERE id = $2 RETURNING revision")
                        .bind(signed(now_ms, DOING)?)
                        .bind(device.to_string())
                        .bind(to_json(presence, DOING)?)
                        .bind(i64::from(presence.online))
                }
                Note::Reported(_, reported) => {
                    query("UPDATE devices SET seen_ms = $1, reported = $3 WHERE id = $2 RETURNING revision")
                        .bind(signed(now_ms, DOING)?)
                        .bind(device.to_string())
                        .bind(to_json(reported, DOING)?)
                }
            };
            let Some(row) = update.fetch_optional(&mut *transaction).await.map_err(sql(DOING))? else {
                tracing::warn!(%device, "a new device is not kept: there are {MAX_DEVICES}, which is the most");
                continue;
            };
            if let Note::Reported(_, reported) = note {
                hold_reported(&mut transaction, device, reported, DOING).await?;
                if reported.revision < unsigned(&row, "revision", DOING)? {
                    behind.push(device.clone());
                }
            }
        }
        transaction.commit().await.map_err(sql(DOING))?;
        Ok(behind)
    }
}

impl Note {
    fn device(&self) -> &DeviceId {
        let (Self::Presence(device, _) | Self::Reported(device, _)) = self;
        device
    }
}

/// What a device was told, and the revision that it will be told next. That is above the one it reports, too: a registry
/// whose database was lost counts from the beginning, and a device ignores what is not newer.
async fn told(
    transaction: &mut Transaction<'static, Any>,
    device: &DeviceId,
    doing: &'static str,
) -> Result<(Vec<DesiredModel>, u64), RegistryError> {
    ensure_device(transaction, device, doing).await?;
    let found = query("SELECT revision, desired, reported FROM devices WHERE id = $1")
        .bind(device.to_string())
        .fetch_optional(&mut **transaction)
        .await
        .map_err(sql(doing))?;
    let row = found.ok_or_else(|| {
        RegistryError::Conflict(format!(
            "{device} is new, and there are {MAX_DEVICES} devices, which is the most"
        ))
    })?;
    let reported: Option<String> = row.try_get("reported").map_err(sql(doing))?;
    let reported: Option<Reported> = reported.map(|json| from_json(&json, doing)).transpose()?;
    let followed = reported.map_or(0, |reported| reported.revision);
    let known = unsigned(&row, "revision", doing)?;
    // What is absurdly far ahead is not followed: there would be no number left.
    let is_sane = followed <= known.saturating_add(MAX_REVISIONS_AHEAD);
    let latest = if is_sane { known.max(followed) } else { known };
    Ok((from_json(&text(&row, "desired", doing)?, doing)?, latest.saturating_add(1)))
}

async fn set_desired(
    transaction: &mut Transaction<'static, Any>,
    device: &DeviceId,
    revision: u64,
    models: &[DesiredModel],
    doing: &'static str,
) -> Result<DesiredRevision, StoreError> {
    query("UPDATE devices SET revision = $1, desired = $2 WHERE id = $3")
        .bind(signed(revision, doing)?)
        .bind(to_json(&models, doing)?)
        .bind(device.to_string())
        .execute(&mut **transaction)
        .await
        .map_err(sql(doing))?;
    query("DELETE FROM holdings WHERE device = $1 AND why = 'desired'")
        .bind(device.to_string())
        .execute(&mut **transaction)
        .await
        .map_err(sql(doing))?;
    for model in models {
        hold(transaction, device, &model.name, model.version, "desired", doing).await?;
    }
    Ok(DesiredRevision { device: device.to_string(), revision })
}

async fn hold_reported(
    transaction: &mut Transaction<'static, Any>,
    device: &DeviceId,
    reported: &Reported,
    doing: &'static str,
) -> Result<(), StoreError> {
    query("DELETE FROM holdings WHERE device = $1 AND why <> 'desired'")
        .bind(device.to_string())
        .execute(&mut **transaction)
        .await
        .map_err(sql(doing))?;
    for model in &reported.models {
        for (version, why) in [(model.active, "active"), (model.previous, "previous")] {
            if let Some(version) = version {
                hold(transaction, device, &model.name, version, why, doing).await?;
            }
        }
    }
    Ok(())
}

async fn hold(
    transaction: &mut Transaction<'static, Any>,
    device: &DeviceId,
    name: &ModelName,
    version: u64,
    why: &'static str,
    doing: &'static str,
) -> Result<(), StoreError> {
    query("INSERT INTO holdings (device, name, version, why) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING")
        .bind(device.to_string())
        .bind(name.to_string())
        .bind(signed(version, doing)?)
        .bind(why.to_owned())
        .execute(&mut **transaction)
        .await
        .map_err(sql(doing))
        .map(|_| ())
}

/// Makes a row for a device unless there are [`MAX_DEVICES`].
async fn ensure_device(
    transaction: &mut Transaction<'static, Any>,
    device: &DeviceId,
    doing: &'static str,
) -> Result<(), StoreError> {
    query(
        "INSERT INTO devices (id, revision, desired, online) SELECT $1, 0, '[]', 0 \
         WHERE NOT EXISTS (SELECT 1 FROM devices WHERE id = $1) AND (SELECT COUNT(*) FROM devices) < $2 ON CONFLICT DO NOTHING",
    )
    .bind(device.to_string())
    .bind(MAX_DEVICES)
    .execute(&mut **transaction)
    .await
    .map_err(sql(doing))
    .map(|_| ())
}

fn device_row(row: &AnyRow, doing: &'static str) -> Result<DeviceRow, StoreError> {
    let optional = |column: &'static str| row.try_get::<Option<String>, _>(column).map_err(sql(doing));
    let seen_ms: Option<i64> = row.try_get("seen_ms").map_err(sql(doing))?;
    Ok(DeviceRow {
        id: text(row, "id", doing)?,
        desired: Desired {
            revision: unsigned(row, "revision", doing)?,
            models: from_json(&text(row, "desired", doing)?, doing)?,
            collect: None,
        },
        online: unsigned(row, "online", doing)? == 1,
        presence: optional("presence")?.map(|json| from_json(&json, doing)).transpose()?,
        reported: optional("reported")?.map(|json| from_json(&json, doing)).transpose()?,
        seen_ms: seen_ms.and_then(|ms| u64::try_from(ms).ok()),
        rows_refused: unsigned(row, "refused", doing)?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use cloud_sync::contract::{AgentInfo, Hardware, Ledger, Phase, ReportedModel};

    use super::*;

    pub(in crate::store) fn report(
        name: &str,
        version: u64,
        active: Option<u64>,
        previous: Option<u64>,
    ) -> Reported {
        let model = ReportedModel {
            name: name.parse().unwrap(),
            version,
            phase: Phase::Active,
            why: None,
            active,
            previous,
            engine: None,
            provider: None,
            memory_bytes: None,
            transfer: None,
        };
        Reported {
            revision: 1,
            models: vec![model],
            agent: AgentInfo { version: "0.1.0".into(), boot_id: "b".into(), state: "running".into() },
            hardware: Hardware::default(),
            ledger: Ledger::default(),
        }
    }

    pub(crate) fn empty_record() -> ModelRecord {
        ModelRecord {
            id: String::new(),
            name: String::new(),
            version: 0,
            created_time: String::new(),
            description: None,
            framework: None,
            framework_version: None,
            license: None,
            tags: Default::default(),
            properties: Default::default(),
            resource_configuration: Default::default(),
            digest: String::new(),
            size: 0,
            signature: Default::default(),
            engines: Vec::new(),
        }
    }

    /// A store with one version, load:1.
    pub(crate) async fn store() -> (tempfile::TempDir, Store) {
        let (directory, store) = crate::store::fixture::empty().await;
        let digest = cloud_sync::digest::Digest::of(b"bundle").to_string();
        store.add_version(ModelRecord { name: "load".into(), digest, ..empty_record() }).await.unwrap();
        (directory, store)
    }

    fn id(text: &str) -> DeviceId {
        text.parse().unwrap()
    }

    fn says(device: &str, revision: u64, active: u64) -> Note {
        Note::Reported(id(device), Box::new(Reported { revision, ..report("load", 1, Some(active), None) }))
    }

    async fn deploy(store: &Store, device: &str) -> u64 {
        let version = "load:1".parse().unwrap();
        store.deploy(&[id(device)], &version, &ModelSettings::default()).await.unwrap()[0].revision
    }

    #[tokio::test]
    async fn a_report_from_far_ahead_leaves_numbers_for_deployments() {
        let (_directory, store) = store().await;
        store.note(&[says("d1", 40, 1), says("d2", (1 << 53) - 1, 1)], 5).await.unwrap();
        assert_eq!((deploy(&store, "d1").await, deploy(&store, "d2").await), (41, 1));
    }

    #[tokio::test]
    async fn a_note_that_cannot_be_kept_costs_none_of_the_others() {
        let (_directory, store) = store().await;
        let noted =
            store.note(&[says("d1", 0, 1), says("d2", 0, u64::MAX), says("d3", 0, 1)], 5).await.unwrap();
        assert_eq!(noted.lost, 1);
        let kept = store.devices("", 9).await.unwrap();
        assert_eq!(kept.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["d1", "d3"]);
    }

    #[tokio::test]
    async fn a_device_that_follows_an_older_state_is_named() {
        let (_directory, store) = store().await;
        assert_eq!((deploy(&store, "d1").await, deploy(&store, "d1").await), (1, 2));
        assert_eq!(store.desired(&id("d1")).await.unwrap().unwrap().models[0].deployment, 2);
        assert_eq!(store.note(&[says("d1", 1, 1), says("d2", 0, 1)], 5).await.unwrap().behind, [id("d1")]);
        assert!(store.note(&[says("d1", 2, 1)], 5).await.unwrap().behind.is_empty());
    }

    #[tokio::test]
    async fn a_registry_that_has_lost_its_records_is_heard_again() {
        let (_directory, store) = store().await;
        store.note(&[says("d1", 7, 1)], 5).await.unwrap();
        assert!(store.desired(&id("d1")).await.unwrap().is_none(), "it was told nothing yet");
        assert_eq!(deploy(&store, "d1").await, 8);
        assert_eq!(store.desired(&id("d1")).await.unwrap().unwrap().models[0].deployment, 8);
    }

    #[tokio::test]
    async fn a_device_too_many_leaves_nothing() {
        let (_directory, store) = store().await;
        query(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1) \
             INSERT INTO devices (id, revision, desired, online) SELECT 'd' || i, 0, '[]', 0 FROM n",
        )
        .bind(MAX_DEVICES)
        .execute(&store.pool)
        .await
        .unwrap();
        assert_eq!(store.note(&[says("one-more", 1, 1), says("d1", 0, 2)], 5).await.unwrap().lost, 0);
        let held = query("SELECT device FROM holdings").fetch_all(&store.pool).await.unwrap();
        let held: Vec<String> = held.iter().map(|row| text(row, "device", "testing").unwrap()).collect();
        assert_eq!(held, ["d1"]);
        let version = "load:1".parse().unwrap();
        let refused = store.deploy(&[id("one-more")], &version, &ModelSettings::default()).await;
        assert!(matches!(refused, Err(RegistryError::Conflict(_))), "{refused:?}");
    }
}
