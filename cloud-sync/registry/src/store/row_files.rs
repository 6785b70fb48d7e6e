//! Which rows are durable, and in which objects they are.
//!
//! An attempt to store a batch names its objects here before it writes them. It counts only if all of them are still
//! pending and the stream is where the attempt found it; otherwise nothing of it counts and its objects are deleted.
//! They stay on the list until nobody can be writing them any more, though the attempt be another replica's.

use cloud_sync::name::DeviceId;
use sqlx::any::AnyRow;
use sqlx::query;

use super::{Store, StoreError, signed, sql, text, unsigned};

/// Streams of all devices: four for each of the most that there may be.
const MAX_STREAMS: u64 = 400_000;

/// An object with rows of one device, one model version and one day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowFile {
    /// Where it lies in the object store.
    pub path: String,
    /// The device that captured the rows.
    pub device: String,
    /// The model that scored them.
    pub model: String,
    /// Its version.
    pub version: u64,
    /// `YYYY/MM/DD`
    pub day: String,
    /// The earliest of its rows, in milliseconds since 1970.
    pub first_ms: u64,
    /// The latest.
    pub last_ms: u64,
    /// How many rows it holds.
    pub rows: u64,
}

/// Which files to look for.
#[derive(Debug, Clone)]
pub struct FileQuery {
    /// The model.
    pub model: String,
    /// Its version; 0 for all.
    pub version: u64,
    /// Files with rows at or after this time.
    pub since_ms: u64,
    /// Files with rows before this time.
    pub until_ms: u64,
}

impl Store {
    /// The sequence number through which a stream is durable; 0 before its first row. `None` for a new stream of a device
    /// that has `most`, or where there are as many as all devices have with a few each.
    pub async fn durable_through(
        &self,
        device: &DeviceId,
        stream: &str,
        most: u64,
    ) -> Result<Option<u64>, StoreError> {
        const DOING: &str = "reading how far a stream is durable";
        let found = query("SELECT durable_through FROM streams WHERE device = $1 AND stream = $2")
            .bind(device.to_string())
            .bind(stream.to_owned())
            .fetch_optional(&self.pool)
            .await
            .map_err(sql(DOING))?;
        if let Some(row) = found {
            return unsigned(&row, "durable_through", DOING).map(Some);
        }
        let counted = query(
            "SELECT (SELECT COUNT(*) FROM streams WHERE device = $1) AS own, (SELECT COUNT(*) FROM streams) AS everyone",
        );
        let counted = counted.bind(device.to_string()).fetch_one(&self.pool).await.map_err(sql(DOING))?;
        let (own, everyone) = (unsigned(&counted, "own", DOING)?, unsigned(&counted, "everyone", DOING)?);
        Ok((own < most && everyone < MAX_STREAMS).then_some(0))
    }

    /// The streams of one device after the other, and the sequence number through which each is durable; "" and 0 of a
    /// device that has none yet.
    pub async fn streams(&self) -> Result<Vec<(DeviceId, String, u64)>, StoreError> {
        const DOING: &str = "listing streams";
        let rows = query(
            "SELECT id, COALESCE(stream, '') AS stream, CAST(COALESCE(durable_through, 0) AS BIGINT) AS through \
             FROM devices LEFT JOIN streams ON streams.device = devices.id ORDER BY id",
        );
        let rows = rows.fetch_all(&self.pool).await.map_err(sql(DOING))?;
        let stream = |row: &AnyRow| {
            let device = text(row, "id", DOING)?.parse().map_err(|_| StoreError::Range(DOING))?;
            Ok((device, text(row, "stream", DOING)?, unsigned(row, "through", DOING)?))
        };
        rows.iter().map(stream).collect()
    }

    /// Names the objects of an attempt before they are written.
    pub async fn begin_attempt(
        &self,
        stream: &str,
        attempt: &str,
        files: &[RowFile],
        now_ms: u64,
    ) -> Result<(), StoreError> {
        const DOING: &str = "beginning to store rows";
        let mut transaction = self.begin_rows(DOING).await?;
        for file in files {
            query(
                "INSERT INTO row_files \
                 (path, state, device, stream, attempt, model, version, day, first_ms, last_ms, stored, begun_ms) \
                 VALUES ($1, 'pending', $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            )
            .bind(file.path.clone())
            .bind(file.device.clone())
            .bind(stream.to_owned())
            .bind(attempt.to_owned())
            .bind(file.model.clone())
            .bind(signed(file.version, DOING)?)
            .bind(file.day.clone())
            .bind(signed(file.first_ms, DOING)?)
            .bind(signed(file.last_ms, DOING)?)
            .bind(signed(file.rows, DOING)?)
            .bind(signed(now_ms, DOING)?)
            .execute(&mut *transaction)
            .await
            .map_err(sql(DOING))?;
        }
        transaction.commit().await.map_err(sql(DOING))
    }

    /// Makes an attempt count and moves its stream from `before` to `through`. False, and nothing done, if the stream
    /// has moved or the attempt was given up by another.
    pub async fn commit_attempt(
        &self,
        device: &DeviceId,
        stream: &str,
        attempt: &str,
        (before, through): (u64, u64),
        (files, stored, refused): (usize, u64, u64),
    ) -> Result<bool, StoreError> {
        const DOING: &str = "storing rows";
        let mut transaction = self.begin_rows(DOING).await?;
        query(
            "INSERT INTO streams (device, stream, durable_through, stored, refused) VALUES ($1, $2, 0, 0, 0) \
             ON CONFLICT DO NOTHING",
        )
        .bind(device.to_string())
        .bind(stream.to_owned())
        .execute(&mut *transaction)
        .await
        .map_err(sql(DOING))?;
        let moved = query(
            "UPDATE streams SET durable_through = $1, stored = stored + $2, refused = refused + $3 \
             WHERE device = $4 AND stream = $5 AND durable_through = $6",
        )
        .bind(signed(through, DOING)?)
        .bind(signed(stored, DOING)?)
        .bind(signed(refused, DOING)?)
        .bind(device.to_string())
        .bind(stream.to_owned())
        .bind(signed(before, DOING)?)
        .execute(&mut *transaction)
        .await
        .map_err(sql(DOING))?;
        let counted =
            // What is not durable has an index of its own; SQLite wants to be told that this is among it.
            query(
                "UPDATE row_files SET state = 'durable' WHERE device = $1 AND stream = $2 AND attempt = $3 \
                 AND state = 'pending' AND state <> 'durable'",
            )
                .bind(device.to_string())
                .bind(stream.to_owned())
                .bind(attempt.to_owned())
                .execute(&mut *transaction)
                .await
                .map_err(sql(DOING))?;
        if moved.rows_affected() != 1 || counted.rows_affected() != files as u64 {
            transaction.rollback().await.map_err(sql(DOING))?;
            return Ok(false);
        }
        transaction.commit().await.map_err(sql(DOING))?;
        Ok(true)
    }

    /// Whether an attempt of a stream that began between two times is neither at its end nor given up.
    pub async fn is_attempted(
        &self,
        device: &DeviceId,
        stream: &str,
        (since_ms, until_ms): (u64, u64),
    ) -> Result<bool, StoreError> {
        const DOING: &str = "looking for an attempt to store rows";
        let found = query(
            "SELECT path FROM row_files WHERE state = 'pending' AND state <> 'durable' AND device = $1 \
             AND stream = $2 AND begun_ms BETWEEN $3 AND $4 LIMIT 1",
        )
        .bind(device.to_string())
        .bind(stream.to_owned())
        .bind(signed(since_ms, DOING)?)
        .bind(signed(until_ms, DOING)?)
        .fetch_optional(&self.pool)
        .await;
        found.map(|row| row.is_some()).map_err(sql(DOING))
    }

    /// Has all attempts have begun so much earlier.
    #[cfg(test)]
    pub(crate) async fn age_attempts(&self, by: std::time::Duration) {
        let age = query("UPDATE row_files SET begun_ms = begun_ms - $1");
        age.bind(i64::try_from(by.as_millis()).unwrap() + 1000).execute(&self.pool).await.unwrap();
    }

    /// Gives up every attempt of a stream that did not come to its end; returns the objects to delete.
    pub async fn doom_stream(&self, device: &DeviceId, stream: &str) -> Result<Vec<String>, StoreError> {
        const DOING: &str = "giving up unfinished rows";
        let rows = query(
            "UPDATE row_files SET state = 'doomed' WHERE state = 'pending' AND state <> 'durable' AND device = $1 \
             AND stream = $2 RETURNING path",
        )
        .bind(device.to_string())
        .bind(stream.to_owned())
        .fetch_all(&self.pool)
        .await
        .map_err(sql(DOING))?;
        rows.iter().map(|row| text(row, "path", DOING)).collect()
    }

    /// Gives up what attempts that began before `begun_ms` have left; returns the objects to delete, and then to forget.
    pub async fn doom_before(&self, begun_ms: u64) -> Result<Vec<String>, StoreError> {
        const DOING: &str = "giving up abandoned rows";
        let rows = query(
            "UPDATE row_files SET state = 'doomed' WHERE state <> 'durable' AND begun_ms < $1 RETURNING path",
        )
        .bind(signed(begun_ms, DOING)?)
        .fetch_all(&self.pool)
        .await
        .map_err(sql(DOING))?;
        rows.iter().map(|row| text(row, "path", DOING)).collect()
    }

    /// Forgets doomed objects once they are deleted.
    pub async fn forget_files(&self, paths: &[String]) -> Result<(), StoreError> {
        const DOING: &str = "forgetting deleted objects";
        let mut transaction = self.begin_rows(DOING).await?;
        for path in paths {
            query("DELETE FROM row_files WHERE path = $1 AND state = 'doomed'")
                .bind(path.clone())
                .execute(&mut *transaction)
                .await
                .map_err(sql(DOING))?;
        }
        transaction.commit().await.map_err(sql(DOING))
    }

    /// The durable files of a query, in the order of version, day, device and first row.
    pub async fn row_files(&self, wanted: &FileQuery) -> Result<Vec<RowFile>, StoreError> {
        const DOING: &str = "looking for rows";
        let rows = query(
            "SELECT path, device, model, version, day, first_ms, last_ms, stored FROM row_files \
             WHERE model = $1 AND ($2 = 0 OR version = $2) AND last_ms >= $3 AND first_ms < $4 \
             AND state = 'durable' ORDER BY version, day, device, first_ms, path",
        )
        .bind(wanted.model.clone())
        .bind(signed(wanted.version, DOING)?)
        .bind(i64::try_from(wanted.since_ms).unwrap_or(i64::MAX))
        .bind(i64::try_from(wanted.until_ms).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await
        .map_err(sql(DOING))?;
        let file = |row: &AnyRow| {
            Ok(RowFile {
                path: text(row, "path", DOING)?,
                device: text(row, "device", DOING)?,
                model: text(row, "model", DOING)?,
                version: unsigned(row, "version", DOING)?,
                day: text(row, "day", DOING)?,
                first_ms: unsigned(row, "first_ms", DOING)?,
                last_ms: unsigned(row, "last_ms", DOING)?,
                rows: unsigned(row, "stored", DOING)?,
            })
        };
        rows.iter().map(file).collect()
    }
}
