//! Scoring as every way in uses it: HTTP, local MQTT routes and the `score` command.
//!
//! One place that finds the model, scores within the deadline, and offers the row for capture afterwards, so
//! that no way in can forget one of these.

use std::sync::Arc;
use std::time::Duration;

use engine::Tensors;

use crate::capture::Capture;
use crate::scorer::{Live, ScoreRefused, Scored, Scorer};
use crate::trace::{self, Tracer, Value};

/// A request, whichever way it came.
#[derive(Debug)]
pub struct Request<'a> {
    /// The model's name.
    pub model: &'a str,
    /// The version, where the caller insists on one.
    pub version: Option<&'a str>,
    /// What to score.
    pub inputs: Tensors,
    /// The caller's id for the request; one is made where there is none.
    pub request_id: Option<String>,
    /// What the caller joins labels with later; the request id where there is none.
    pub correlation_id: Option<String>,
}

/// An answer and who gave it.
pub struct Answer {
    /// The version that answered.
    pub live: Arc<Live>,
    /// What it said.
    pub scored: Scored,
    /// The request's id.
    pub request_id: String,
}

/// Scoring with capture. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    /// The live models.
    pub scorer: Scorer,
    /// Where rows go.
    pub capture: Capture,
    /// Longest time from request to answer.
    pub timeout: Duration,
    /// Begins the spans of whatever way in.
    pub tracer: Tracer,
}

impl Service {
    /// Scores a request and offers it for capture.
    pub async fn score(&self, request: Request<'_>) -> Result<Answer, ScoreRefused> {
        let live = self.scorer.find(request.model, request.version)?;
        self.score_on(live, request.inputs, request.request_id, request.correlation_id).await
    }

    /// Scores on a version that was found before, as a way in does that needs its signature to read the body.
    pub async fn score_on(
        &self,
        live: Arc<Live>,
        inputs: Tensors,
        request_id: Option<String>,
        correlation_id: Option<String>,
    ) -> Result<Answer, ScoreRefused> {
        let asked = trace::elapsed();
        let scored = live.score(inputs, self.timeout).await?;
        let request_id = request_id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let correlation_id = correlation_id.unwrap_or_else(|| request_id.clone());
        let offered = trace::elapsed();
        self.capture.offer(&live, &scored, &request_id, &correlation_id);
        let captured = trace::elapsed();
        trace::current(|span| {
            let begun = asked + scored.queued;
            span.part("queue", asked..begun);
            span.part("compute", begun..begun + scored.computed);
            span.part("capture", offered..captured);
            span.set("edgewise.model.name", Value::Text(live.facts.name.to_string()));
            span.set("edgewise.model.version", Value::Number(live.facts.version));
            span.set("edgewise.request.id", Value::Text(request_id.clone()));
        });
        Ok(Answer { live, scored, request_id })
    }
}
