//! Devices: what each shall run, what it says it runs, and who holds which version.

use cloud_sync::contract::{Desired, DesiredModel, ModelSettings, Presence, Reported};
use cloud_sync::limits::MAX_MODELS;
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
    Reported(DeviceId, Reported),
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
            deployment: crate::now_ms(),
            signature: None,
            settings: settings.clone(),
        };
        let mut revisions = Vec::new();
        for device in devices {
            let mut models = desired_models(&mut transaction, device, DOING).await?;
            models.retain(|model| model.name != version.name);
            models.push(wanted.clone());
            if models.len() > MAX_MODELS {
                return Err(RegistryError::Conflict(format!(
                    "{device} has {MAX_MODELS} models, which is the most; undeploy one first"
                )));
            }
            revisions.push(set_desired(&mut transaction, device, &models, DOING).await?);
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
            let mut models = desired_models(&mut transaction, device, DOING).await?;
            let before = models.len();
            models.retain(|model| model.name != *name);
            if models.len() == before {
                return Err(RegistryError::NotFound(format!("{name} is not deployed to {device}")));
            }
            revisions.push(set_desired(&mut transaction, device, &models, DOING).await?);
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
        let rows = query("SELECT * FROM devices WHERE id > $1 ORDER BY id LIMIT $2")
            .bind(after.to_owned())
            .bind(limit)
            .fetch_all(&self.pool)
            .await;
        rows.map_err(sql(DOING))?.iter().map(|row| device_row(row, DOING)).collect()
    }

    /// One device.
    pub async fn device(&self, device: &DeviceId) -> Result<Option<DeviceRow>, StoreError> {
        const DOING: &str = "reading a device";
        let found = query("SELECT * FROM devices WHERE id = $1")
            .bind(device.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(sql(DOING))?;
        found.map(|row| device_row(&row, DOING)).transpose()
    }

    /// Keeps what devices said, the last word of each. All or none.
    pub async fn note(&self, notes: &[Note], now_ms: u64) -> Result<(), StoreError> {
        const DOING: &str = "keeping what devices report";
        let mut transaction = self.begin(DOING).await?;
        for note in notes {
            let (Note::Presence(device, _) | Note::Reported(device, _)) = note;
            ensure_device(&mut transaction, device, DOING).await?;
            let update = match note {
                Note::Presence(_, presence) => {
                    query("UPDATE devices SET seen_ms = $1, presence = $3, online = $4 WHERE id = $2")
                        .bind(signed(now_ms, DOING)?)
                        .bind(device.to_string())
                        .bind(to_json(presence, DOING)?)
                        .bind(i64::from(presence.online))
                }
                Note::Reported(_, reported) => {
                    query("UPDATE devices SET seen_ms = $1, reported = $3 WHERE id = $2")
                        .bind(signed(now_ms, DOING)?)
                        .bind(device.to_string())
                        .bind(to_json(reported, DOING)?)
                }
            };
            update.execute(&mut *transaction).await.map_err(sql(DOING))?;
            if let Note::Reported(_, reported) = note {
                hold_reported(&mut transaction, device, reported, DOING).await?;
            }
        }
        transaction.commit().await.map_err(sql(DOING))
    }
}

async fn desired_models(
    transaction: &mut Transaction<'static, Any>,
    device: &DeviceId,
    doing: &'static str,
) -> Result<Vec<DesiredModel>, StoreError> {
    let found = query("SELECT desired FROM devices WHERE id = $1")
        .bind(device.to_string())
        .fetch_optional(&mut **transaction)
        .await
        .map_err(sql(doing))?;
    found.map_or(Ok(Vec::new()), |row| from_json(&text(&row, "desired", doing)?, doing))
}

async fn set_desired(
    transaction: &mut Transaction<'static, Any>,
    device: &DeviceId,
    models: &[DesiredModel],
    doing: &'static str,
) -> Result<DesiredRevision, StoreError> {
    ensure_device(transaction, device, doing).await?;
    let row =
        query("UPDATE devices SET revision = revision + 1, desired = $1 WHERE id = $2 RETURNING revision")
            .bind(to_json(&models, doing)?)
            .bind(device.to_string())
            .fetch_one(&mut **transaction)
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
    Ok(DesiredRevision { device: device.to_string(), revision: unsigned(&row, "revision", doing)? })
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

async fn ensure_device(
    transaction: &mut Transaction<'static, Any>,
    device: &DeviceId,
    doing: &'static str,
) -> Result<(), StoreError> {
    query(
        "INSERT INTO devices (id, revision, desired, online) SELECT $1, 0, '[]', 0 \
         WHERE (SELECT COUNT(*) FROM devices) < $2 ON CONFLICT DO NOTHING",
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
    })
}

#[cfg(test)]
pub(super) mod tests {
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

    pub(in crate::store) fn empty_record() -> ModelRecord {
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
}
