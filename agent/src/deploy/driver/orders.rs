//! What the driver can be told, and by whom: a registry, a twin, a command.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cloud_sync::contract::{Collect, Desired};
use cloud_sync::limits::MAX_REVISIONS_AHEAD;
use cloud_sync::name::ModelName;
use tokio::sync::oneshot;

use super::Driver;
use crate::deploy::{Deployment, Effect, Event, Target, step};
use crate::link::Origin;

/// What the driver can be told.
#[derive(Debug)]
pub enum Order {
    /// The registry's wishes. While a twin decides they are not followed.
    Desired(Desired, Origin),
    /// A twin's wishes. They are followed whatever they were before: a twin has its own order. Answers once the status
    /// shows them.
    Twin(Wanted, oneshot::Sender<()>),
    /// Serve the version before. Answers with that version, or with why not.
    Rollback(ModelName, oneshot::Sender<Result<u64, String>>),
    /// Collect so, until the cloud says otherwise.
    Collect(Collect, oneshot::Sender<()>),
}

/// What a twin wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The models to serve.
    pub models: Models,
    /// Models of which it is not clear what is wanted: they stay as they are.
    pub unclear: BTreeSet<ModelName>,
    /// What to collect where a model's settings do not say, where that is to change; `None` within for what the
    /// device's own configuration says.
    pub collect: Option<Option<Collect>>,
}

/// Who says which models are to be served.
#[derive(Debug, Clone, PartialEq)]
pub enum Models {
    /// The twin: these.
    These(BTreeMap<ModelName, Target>),
    /// The registry.
    OfRegistry,
    /// Who did before: what the twin says makes no sense.
    AsBefore,
}

impl Driver {
    /// Does what an order says.
    pub(super) async fn follow(&mut self, order: Order) {
        match order {
            Order::Desired(Desired { revision, .. }, origin)
                if origin == self.state.origin && revision <= self.state.revision =>
            {
                tracing::debug!(revision, "an old desired state is ignored");
            }
            Order::Desired(Desired { revision, .. }, _)
                if revision > self.state.revision.saturating_add(MAX_REVISIONS_AHEAD) =>
            {
                tracing::warn!(revision, "a desired state is ignored: it is absurdly far ahead");
            }
            Order::Desired(Desired { revision, .. }, origin) if self.state.twin_decides => {
                tracing::info!(revision, "the registry's wishes are ignored: the twin decides");
                // Else the registry would say it again and again.
                (self.state.revision, self.state.origin) = (revision, origin);
            }
            Order::Desired(desired, origin) => {
                tracing::info!(
                    revision = desired.revision,
                    models = desired.models.len(),
                    "new desired state"
                );
                let wanted = desired.models.iter().map(|model| (model.name.clone(), Target::from(model)));
                (self.state.revision, self.state.origin) = (desired.revision, origin);
                self.state.collect = desired.collect.or(self.state.collect);
                self.want(wanted.collect()).await;
            }
            Order::Twin(wanted, answer) => {
                self.follow_twin(wanted).await;
                self.publish();
                let _ = answer.send(());
            }
            Order::Rollback(name, answer) => {
                let previous = self.state.models.get(&name).map(|deployment| deployment.previous.clone());
                let result = match previous {
                    None => Err(format!("model {name} is not deployed here")),
                    Some(None) => Err(format!("model {name} has no version to roll back to")),
                    Some(Some(previous)) => {
                        self.handle(&name, Event::Rollback).await;
                        Ok(previous.version)
                    }
                };
                let _ = answer.send(result);
            }
            Order::Collect(collect, answer) => {
                self.state.collect = Some(collect);
                self.write().await;
                let _ = answer.send(());
            }
        }
    }

    async fn follow_twin(&mut self, wanted: Wanted) {
        self.state.collect = wanted.collect.unwrap_or(self.state.collect);
        match wanted.models {
            Models::These(mut models) => {
                self.state.twin_decides = true;
                for (name, deployment) in &self.state.models {
                    if wanted.unclear.contains(name) {
                        models.insert(name.clone(), deployment.target.clone());
                    }
                }
                self.want(models).await;
            }
            Models::OfRegistry => {
                if self.state.twin_decides {
                    // What the registry said meanwhile was not followed: it is to be said again.
                    self.state.revision = 0;
                }
                self.state.twin_decides = false;
                self.write().await;
            }
            Models::AsBefore => self.write().await,
        }
    }

    /// Takes a desired state: all of it becomes durable at once, and only then does anything happen.
    async fn want(&mut self, wanted: BTreeMap<ModelName, Target>) {
        let gone: Vec<ModelName> =
            self.state.models.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        let mut effects: Vec<(ModelName, Vec<Effect>)> = Vec::new();
        for name in gone {
            self.state.models.remove(&name);
            self.transfers.remove(&name);
            self.jobs.abandon_all(&name);
            effects.push((name, vec![Effect::Unload, Effect::Collect]));
        }
        for (name, target) in wanted {
            let (next, more) = match self.state.models.get(&name) {
                Some(deployment) => step(deployment.clone(), Event::Desired(target)),
                None => Deployment::new(target),
            };
            self.state.models.insert(name.clone(), next);
            effects.push((name, more));
        }
        self.write().await;
        for (name, effects) in effects {
            self.perform(&name, effects, Duration::ZERO, None).await;
        }
    }
}
