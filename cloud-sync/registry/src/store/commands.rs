//! Commands and their answers.

use cloud_sync::contract::{Command, Reply};
use cloud_sync::name::DeviceId;
use sqlx::{Row, query};

use super::{Store, StoreError, from_json, signed, sql, text, to_json};

/// How long an answered or expired command is kept to look at, in milliseconds: a week.
const KEPT_MS: u64 = 7 * 24 * 3600 * 1000;

impl Store {
    /// Keeps a command before it is sent, and drops those that are long over.
    pub async fn add_command(
        &self,
        device: &DeviceId,
        command: &Command,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        const DOING: &str = "storing a command";
        let mut transaction = self.begin(DOING).await?;
        query("DELETE FROM commands WHERE deadline_ms < $1")
            .bind(signed(now_ms.saturating_sub(KEPT_MS), DOING)?)
            .execute(&mut *transaction)
            .await
            .map_err(sql(DOING))?;
        query("INSERT INTO commands (id, device, name, deadline_ms) VALUES ($1, $2, $3, $4)")
            .bind(command.id.clone())
            .bind(device.to_string())
            .bind(command.name.clone())
            .bind(signed(command.deadline, DOING)?)
            .execute(&mut *transaction)
            .await
            .map_err(sql(DOING))?;
        transaction.commit().await.map_err(sql(DOING))
    }

    /// Keeps the first answer to a command of that device; says whether there was one to answer.
    pub async fn answer_command(&self, device: &DeviceId, reply: &Reply) -> Result<bool, StoreError> {
        const DOING: &str = "storing the answer to a command";
        let done = query(
            "UPDATE commands SET status = $1, result = $2 WHERE id = $3 AND device = $4 AND status IS NULL",
        )
        .bind(i64::from(reply.status))
        .bind(to_json(&reply.result, DOING)?)
        .bind(reply.id.clone())
        .bind(device.to_string())
        .execute(&self.pool)
        .await
        .map_err(sql(DOING))?;
        Ok(done.rows_affected() > 0)
    }

    /// The answer to a command, once there is one.
    pub async fn command_answer(&self, id: &str) -> Result<Option<Reply>, StoreError> {
        const DOING: &str = "reading the answer to a command";
        let found = query("SELECT status, result FROM commands WHERE id = $1 AND status IS NOT NULL")
            .bind(id.to_owned())
            .fetch_optional(&self.pool)
            .await
            .map_err(sql(DOING))?;
        let Some(row) = found else { return Ok(None) };
        let status: i64 = row.try_get("status").map_err(sql(DOING))?;
        Ok(Some(Reply {
            id: id.to_owned(),
            status: u16::try_from(status).map_err(|_| StoreError::Range(DOING))?,
            result: from_json(&text(&row, "result", DOING)?, DOING)?,
        }))
    }
}
