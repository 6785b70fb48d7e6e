//! Who may rely on chunks that are stored, and who may sweep them: many registrations, or one sweep, in all replicas.
//!
//! What holds this is the registration's own transaction, which ends with its process or its connection: a replica that
//! dies holds up nobody, and one that has lost its hold can't make its version seen any more.

use std::sync::Arc;

use sqlx::{Any, AnyPool, Executor, Transaction};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::backend::Backend;
use super::{Store, StoreError, sql};

/// Within this process, for databases that know nothing of it.
pub(super) type Local = Arc<RwLock<()>>;

/// A registration under way: no chunk is swept before its version is seen, or it is given up.
#[derive(Debug)]
pub struct Registering {
    pool: AnyPool,
    backend: Backend,
    transaction: Option<Transaction<'static, Any>>,
    _here: OwnedRwLockReadGuard<()>,
}

/// A sweep under way: nothing is registered before it ends.
#[derive(Debug)]
pub struct Sweeping {
    everywhere: Option<Transaction<'static, Any>>,
    _here: OwnedRwLockWriteGuard<()>,
}

impl Store {
    /// Begins a registration, once no sweep is under way.
    pub async fn registering(&self) -> Result<Registering, StoreError> {
        const DOING: &str = "beginning a registration";
        let here = self.chunks.clone().read_owned().await;
        let mut transaction = None;
        if self.backend.is_shared() {
            let mut shared = self.backend.begin(&self.pool).await.map_err(sql(DOING))?;
            Backend::keep_chunks(&mut shared).await.map_err(sql(DOING))?;
            transaction = Some(shared);
        }
        Ok(Registering { pool: self.pool.clone(), backend: self.backend, transaction, _here: here })
    }

    /// Begins a sweep, once no registration is under way here; none where another replica has one or sweeps.
    pub async fn sweeping(&self) -> Result<Option<Sweeping>, StoreError> {
        const DOING: &str = "beginning a sweep";
        let here = self.chunks.clone().write_owned().await;
        let mut everywhere = None;
        if self.backend.is_shared() {
            let mut alone = self.backend.begin(&self.pool).await.map_err(sql(DOING))?;
            if !Backend::sweep_chunks(&mut alone).await.map_err(sql(DOING))? {
                return Ok(None);
            }
            everywhere = Some(alone);
        }
        Ok(Some(Sweeping { everywhere, _here: here }))
    }
}

impl Sweeping {
    /// Makes sure that the sweep still holds up registrations: its connection may have been lost meanwhile, and the
    /// database then lets others register.
    ///
    /// # Errors
    /// It does not, or that can't be said.
    pub async fn still_holds(&mut self) -> Result<(), StoreError> {
        let Some(transaction) = &mut self.everywhere else { return Ok(()) };
        let answer = transaction.execute("SELECT 1").await;
        answer.map(drop).map_err(sql("holding up registrations while chunks are swept"))
    }
}

impl Registering {
    /// The transaction in which the version is to be stored.
    pub(super) async fn transaction(
        &mut self,
        doing: &'static str,
    ) -> Result<Transaction<'static, Any>, StoreError> {
        let mut transaction = match self.transaction.take() {
            Some(transaction) => transaction,
            None => self.backend.begin(&self.pool).await.map_err(sql(doing))?,
        };
        self.backend.lock_writes(&mut transaction).await.map_err(sql(doing))?;
        Ok(transaction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fixture;

    #[tokio::test]
    async fn a_registration_of_one_replica_holds_up_the_sweep_of_another() {
        let directory = tempfile::tempdir().unwrap();
        let url = fixture::database(directory.path()).await;
        if url.starts_with("sqlite:") {
            // One process has it.
            return;
        }
        let (one, other) = (Store::open(&url).await.unwrap(), Store::open(&url).await.unwrap());
        let registering = one.registering().await.unwrap();
        assert!(other.sweeping().await.unwrap().is_none(), "it swept what a registration relies on");
        let record = crate::api::ModelRecord { name: "load".into(), ..crate::store::tests::empty_record() };
        assert_eq!(registering.add_version(record).await.unwrap().version, 1);
        let sweeping = other.sweeping().await.unwrap();
        assert!(sweeping.is_some());
        let waiting = tokio::spawn(async move { one.registering().await.map(drop) });
        drop(sweeping);
        tokio::time::timeout(std::time::Duration::from_secs(20), waiting).await.unwrap().unwrap().unwrap();
    }
}
