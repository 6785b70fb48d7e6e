//! Captured rows: export.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use cloud_sync::name::{ModelName, ModelVersion};
use serde::Deserialize;
use utoipa::IntoParams;

use super::problem::Asked;
use super::{Api, stream};
use crate::api::Problem;
use crate::error::RegistryError;
use crate::export::{Export, Format};
use crate::store::FileQuery;

/// Which rows to export, and as what.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ExportQuery {
    /// `name` or `name:version`.
    model: String,
    /// Rows captured at or after this time, RFC 3339.
    since: Option<String>,
    /// Rows captured before this time, RFC 3339.
    until: Option<String>,
    /// What the files are.
    #[param(inline)]
    format: Format,
}

/// Exports captured rows as a tar of files. Its last entry says how many rows and files there are.
#[utoipa::path(
    get, path = "/api/data/export", tag = "data", params(ExportQuery),
    responses(
        (status = 200, content_type = "application/x-tar", description = "a tar of the files; its last entry counts them"),
        (status = 404, body = Problem, description = "there is no such model or version")
    )
)]
pub(super) async fn export(
    State(api): State<Api>,
    Asked(query): Asked<ExportQuery>,
) -> Result<Response, RegistryError> {
    let (model, version) = match query.model.contains(':') {
        true => query.model.parse().map(|id: ModelVersion| (id.name, id.version))?,
        false => (query.model.parse::<ModelName>()?, 0),
    };
    let since_ms = query.since.map_or(Ok(0), |text| milliseconds("since", &text))?;
    let until_ms = query.until.map_or(Ok(u64::MAX), |text| milliseconds("until", &text))?;
    let wanted = FileQuery { model: model.to_string(), version, since_ms, until_ms };
    let files = api.parts.store.row_files(&wanted).await?;
    if files.is_empty() {
        return Err(RegistryError::NotFound(format!("there are no rows of {} in that time", query.model)));
    }
    let runtime = tokio::runtime::Handle::current();
    let site = api.parts.link.root().site().to_owned();
    let objects = api.parts.objects.clone();
    let temporary = api.temporary.clone();
    let body = stream::body(move |output| {
        let read = |path: &str| {
            let found = runtime.block_on(objects.get(path))?;
            found.ok_or_else(|| RegistryError::Internal(format!("{path} is missing from the store")))
        };
        let export = Export { read, site, since_ms, until_ms, temporary };
        export.write(&files, query.format, output).map(|_| ())
    });
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], body).into_response())
}

fn milliseconds(what: &str, text: &str) -> Result<u64, RegistryError> {
    let wrong = |error: &dyn std::fmt::Display| {
        RegistryError::Invalid(format!("{what} {text:?} is no time as in 2026-11-22T10:00:00Z: {error}"))
    };
    let at: jiff::Timestamp = text.parse().map_err(|error| wrong(&error))?;
    u64::try_from(at.as_millisecond()).map_err(|error| wrong(&error))
}
