//! Models: register, list, show, label, delete, download.

use axum::Json;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use cloud_sync::bundle::write_archive_from;
use cloud_sync::limits::{MAX_BUNDLE_BYTES, MAX_MANIFEST_BYTES, bounded_text};
use cloud_sync::name::{ModelName, ModelVersion};
use serde::Deserialize;
use utoipa::IntoParams;

use super::problem::{self, Asked};
use super::{Api, stream};
use crate::api::{LabelChange, ModelPage, ModelRecord, Problem, Registered};
use crate::error::RegistryError;
use crate::registry::Wording;
use crate::store::ModelFilter;

/// Bytes of a bundle's one-file form beside its files: the manifest, and a tar's headers and padding.
const ARCHIVE_EXTRA_BYTES: u64 = MAX_MANIFEST_BYTES as u64 + 4 * 1024 * 1024;

/// Model versions on a page where nothing is said, and at most.
const PAGE: usize = 100;
/// See [`PAGE`].
const LARGEST_PAGE: usize = 1000;

/// Which versions to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Of this model only.
    name: Option<String>,
    /// With these tags: `key,key2=value2`.
    tags: Option<String>,
    /// With these properties: `key,key2=value2`.
    properties: Option<String>,
    /// The latest version of each model only.
    #[serde(default)]
    latest: bool,
    /// After this version: the `next` of the page before.
    after: Option<String>,
    /// Versions on a page, 1 to 1000.
    limit: Option<usize>,
}

/// Registers a bundle as the next version of a model.
///
/// The body is the bundle's one-file form. Query: `tag=key=value` and `property=key=value`, as often as needed, and
/// `description=text`.
#[utoipa::path(
    post, path = "/api/models/{name}/versions", tag = "models",
    params(
        ("name" = String, Path, description = "the model's name"),
        ("tag" = Option<Vec<String>>, Query, description = "key=value"),
        ("property" = Option<Vec<String>>, Query, description = "key=value"),
        ("description" = Option<String>, Query, description = "what the model does")
    ),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses(
        (status = 201, body = Registered, description = "the new version"),
        (status = 400, body = Problem, description = "a name, tag or property is wrong"),
        (status = 413, body = Problem, description = "the bundle is larger than a bundle may be"),
        (status = 422, body = Problem, description = "the bundle does not load or does not give its golden outputs")
    )
)]
pub(super) async fn register(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
) -> Result<Response, RegistryError> {
    let name: ModelName = name.parse()?;
    let mut wording = Wording::default();
    for (key, value) in query {
        match key.as_str() {
            "description" => wording.description = Some(bounded_text(value)),
            "tag" => insert(&mut wording.tags, &key, &value)?,
            "property" => insert(&mut wording.properties, &key, &value)?,
            other => return Err(RegistryError::Invalid(format!("unknown query parameter {other}"))),
        }
    }
    let _place = api.registry.upload_place()?;
    let prepared = tempfile::Builder::new().suffix(".bundle").tempfile_in(api.registry.incoming());
    let file = prepared.map_err(|error| RegistryError::Internal(format!("keeping the upload: {error}")))?;
    let upload = request.into_body().into_data_stream();
    let file = stream::keep(upload, file, MAX_BUNDLE_BYTES + ARCHIVE_EXTRA_BYTES).await?;
    let registered = api.registry.register(&name, file.path(), wording).await?;
    Ok((StatusCode::CREATED, Json(registered)).into_response())
}

/// Lists model versions in the order of name and version.
#[utoipa::path(
    get, path = "/api/models", operation_id = "list_models", tag = "models", params(ListQuery),
    responses(
        (status = 200, body = ModelPage, description = "a page of versions"),
        (status = 400, body = Problem, description = "the query is wrong")
    )
)]
pub(super) async fn list(
    State(api): State<Api>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<ModelPage>, RegistryError> {
    let filter = ModelFilter {
        name: query.name.map(|name| name.parse()).transpose()?,
        latest: query.latest,
        tags: wanted_labels(query.tags.as_deref()),
        properties: wanted_labels(query.properties.as_deref()),
        after: query.after.map(|after| after.parse()).transpose()?,
    };
    let limit = query.limit.unwrap_or(PAGE).clamp(1, LARGEST_PAGE);
    let (models, more) = api.parts.store.list(&filter, limit).await?;
    let next = models.last().filter(|_| more).map(|record| record.id.clone());
    Ok(Json(ModelPage { models, next }))
}

/// Shows a version; `latest` stands for the highest number.
#[utoipa::path(
    get, path = "/api/models/{name}/versions/{version}", operation_id = "show_model", tag = "models",
    params(("name" = String, Path), ("version" = String, Path, description = "a number or `latest`")),
    responses(
        (status = 200, body = ModelRecord, description = "the version"),
        (status = 404, body = Problem, description = "there is no such version")
    )
)]
pub(super) async fn show(
    State(api): State<Api>,
    Path((name, version)): Path<(String, String)>,
) -> Result<Json<ModelRecord>, RegistryError> {
    let id = version_id(&api, &name, &version).await?;
    Ok(Json(record(&api, &id).await?))
}

/// Sets tags and adds properties.
#[utoipa::path(
    patch, path = "/api/models/{name}/versions/{version}", tag = "models",
    params(("name" = String, Path), ("version" = String, Path, description = "a number or `latest`")),
    request_body = LabelChange,
    responses(
        (status = 200, body = ModelRecord, description = "the version with its new labels"),
        (status = 404, body = Problem, description = "there is no such version"),
        (status = 409, body = Problem, description = "a property would change")
    )
)]
pub(super) async fn label(
    State(api): State<Api>,
    Path((name, version)): Path<(String, String)>,
    problem::Body(change): problem::Body<LabelChange>,
) -> Result<Json<ModelRecord>, RegistryError> {
    let id = version_id(&api, &name, &version).await?;
    Ok(Json(api.parts.store.label(&id, &change).await?))
}

/// Deletes a version that no device needs. Its number is not given again.
#[utoipa::path(
    delete, path = "/api/models/{name}/versions/{version}", tag = "models",
    params(("name" = String, Path), ("version" = u64, Path)),
    responses(
        (status = 204, description = "it is deleted"),
        (status = 404, body = Problem, description = "there is no such version"),
        (status = 412, body = Problem, description = "DeletionRequired: a device desires it, runs it or keeps it to roll back to")
    )
)]
pub(super) async fn delete(
    State(api): State<Api>,
    Path((name, version)): Path<(String, String)>,
) -> Result<StatusCode, RegistryError> {
    api.registry.delete(&format!("{name}:{version}").parse()?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Downloads a version's bundle in its one-file form.
#[utoipa::path(
    get, path = "/api/models/{name}/versions/{version}/bundle", tag = "models",
    params(("name" = String, Path), ("version" = String, Path, description = "a number or `latest`")),
    responses(
        (status = 200, content_type = "application/x-tar", description = "the bundle"),
        (status = 404, body = Problem, description = "there is no such version")
    )
)]
pub(super) async fn bundle(
    State(api): State<Api>,
    Path((name, version)): Path<(String, String)>,
) -> Result<Response, RegistryError> {
    let id = version_id(&api, &name, &version).await?;
    let digest = record(&api, &id).await?.digest;
    let digest = digest.parse().map_err(|_| RegistryError::Internal(format!("{id} has no digest")))?;
    let manifest = api.registry.manifest(digest).await?;
    let runtime = tokio::runtime::Handle::current();
    let body: Body = stream::body(move |output| {
        write_archive_from(output, &manifest, |chunk| {
            runtime.block_on(api.registry.chunk(chunk)).map(|bytes| bytes.to_vec())
        })
    });
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], body).into_response())
}

/// Uploads are bounded while they are kept, not by the limit for JSON.
pub(super) fn upload_limit() -> DefaultBodyLimit {
    DefaultBodyLimit::disable()
}

async fn version_id(api: &Api, name: &str, version: &str) -> Result<ModelVersion, RegistryError> {
    if version != "latest" {
        return Ok(format!("{name}:{version}").parse()?);
    }
    let name: ModelName = name.parse()?;
    match api.parts.store.latest(&name).await? {
        Some(version) => Ok(ModelVersion { name, version }),
        None => Err(RegistryError::NotFound(format!("there is no model {name}; see `edgewise model list`"))),
    }
}

async fn record(api: &Api, id: &ModelVersion) -> Result<ModelRecord, RegistryError> {
    api.parts.store.version(id).await?.ok_or_else(|| RegistryError::no_version(id))
}

fn insert(labels: &mut crate::api::Labels, what: &str, pair: &str) -> Result<(), RegistryError> {
    let (key, value) = pair
        .split_once('=')
        .ok_or_else(|| RegistryError::Invalid(format!("{what} {pair:?} is not key=value")))?;
    labels.insert(key.to_owned(), value.to_owned());
    Ok(())
}

fn wanted_labels(text: Option<&str>) -> Vec<(String, Option<String>)> {
    let parts = text.unwrap_or_default().split(',').filter(|part| !part.is_empty());
    parts
        .map(|part| match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (part.to_owned(), None),
        })
        .collect()
}
