//! Devices and deployments: list, show, deploy, undeploy, command.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use cloud_sync::contract::ModelSettings;
use cloud_sync::limits::MAX_PREFERRED;
use cloud_sync::name::{DeviceId, ModelName, ModelVersion};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::problem::{Asked, Body};
use crate::api::{
    CommandReply, CommandRequest, DeployRequest, Deployed, DeviceModel, DevicePage, DeviceRecord, Problem,
};
use crate::deployments::MAX_DEVICES_AT_ONCE;
use crate::error::RegistryError;
use crate::store::DeviceRow;

/// Devices on a page where nothing is said, and at most.
const PAGE: i64 = 100;
/// See [`PAGE`].
const LARGEST_PAGE: i64 = 1000;

/// How long a command is waited for where nothing is said.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Which devices to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// After this device: the `next` of the page before.
    after: Option<String>,
    /// Devices on a page, 1 to 1000.
    limit: Option<i64>,
}

/// Which devices shall run a model no more.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct UndeployQuery {
    /// The devices, joined by commas.
    devices: String,
}

/// Lists devices in the order of their ids.
#[utoipa::path(
    get, path = "/api/devices", operation_id = "list_devices", tag = "devices", params(ListQuery),
    responses((status = 200, body = DevicePage, description = "a page of devices"))
)]
pub(super) async fn list(
    State(api): State<Api>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<DevicePage>, RegistryError> {
    let limit = query.limit.unwrap_or(PAGE).clamp(1, LARGEST_PAGE);
    let rows = api.parts.store.devices(&query.after.unwrap_or_default(), limit).await?;
    let full = i64::try_from(rows.len()).is_ok_and(|rows| rows == limit);
    let next = rows.last().filter(|_| full).map(|row| row.id.clone());
    Ok(Json(DevicePage { devices: rows.into_iter().map(device_record).collect(), next }))
}

/// Shows a device: what it shall run beside what it runs.
#[utoipa::path(
    get, path = "/api/devices/{id}", operation_id = "show_device", tag = "devices", params(("id" = String, Path)),
    responses(
        (status = 200, body = DeviceRecord, description = "the device"),
        (status = 404, body = Problem, description = "there is no such device")
    )
)]
pub(super) async fn show(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<DeviceRecord>, RegistryError> {
    let row = api.parts.store.device(&id.parse()?).await?;
    row.map(|row| Json(device_record(row))).ok_or_else(|| no_device(&id))
}

/// Tells devices to run a version, in place of any other version of that model.
#[utoipa::path(
    post, path = "/api/deployments", tag = "deployments", request_body = DeployRequest,
    responses(
        (status = 200, body = Deployed, description = "the new desired state of each device"),
        (status = 404, body = Problem, description = "there is no such version"),
        (status = 409, body = Problem, description = "a device can't be given more models")
    )
)]
pub(super) async fn deploy(
    State(api): State<Api>,
    Body(request): Body<DeployRequest>,
) -> Result<Json<Deployed>, RegistryError> {
    let version: ModelVersion = format!("{}:{}", request.name, request.version).parse()?;
    let devices = device_ids(request.devices.iter().map(String::as_str))?;
    check_settings(&request.settings)?;
    let devices = api.parts.deployments.deploy(devices, version, request.settings).await?;
    Ok(Json(Deployed { devices }))
}

/// Tells devices to run a model no more.
#[utoipa::path(
    delete, path = "/api/deployments/{name}", tag = "deployments",
    params(("name" = String, Path, description = "the model"), UndeployQuery),
    responses(
        (status = 200, body = Deployed, description = "the new desired state of each device"),
        (status = 404, body = Problem, description = "a device is not told to run the model")
    )
)]
pub(super) async fn undeploy(
    State(api): State<Api>,
    Path(name): Path<String>,
    Asked(query): Asked<UndeployQuery>,
) -> Result<Json<Deployed>, RegistryError> {
    let name: ModelName = name.parse()?;
    let devices = device_ids(query.devices.split(','))?;
    Ok(Json(Deployed { devices: api.parts.deployments.undeploy(devices, name).await? }))
}

/// Has a device do something, and waits for its answer.
#[utoipa::path(
    post, path = "/api/devices/{id}/commands", tag = "devices", params(("id" = String, Path)),
    request_body = CommandRequest,
    responses(
        (status = 200, body = CommandReply, description = "what the device answered"),
        (status = 404, body = Problem, description = "there is no such device"),
        (status = 504, body = Problem, description = "the device did not answer in time")
    )
)]
pub(super) async fn command(
    State(api): State<Api>,
    Path(id): Path<String>,
    Body(request): Body<CommandRequest>,
) -> Result<Json<CommandReply>, RegistryError> {
    let device: DeviceId = id.parse()?;
    if api.parts.store.device(&device).await?.is_none() {
        return Err(no_device(&id));
    }
    let timeout = request.timeout_seconds.map_or(COMMAND_TIMEOUT, Duration::from_secs);
    let reply = api.parts.commands.run(&device, request.name, request.arguments, timeout).await?;
    Ok(Json(CommandReply { id: reply.id, status: reply.status, result: reply.result }))
}

fn no_device(id: &str) -> RegistryError {
    RegistryError::NotFound(format!("there is no device {id}; see `edgewise device list`"))
}

fn device_ids<'a>(ids: impl Iterator<Item = &'a str>) -> Result<Vec<DeviceId>, RegistryError> {
    let mut devices: Vec<DeviceId> = ids.map(str::parse).collect::<Result<_, _>>()?;
    devices.sort();
    devices.dedup();
    if devices.is_empty() || devices.len() > MAX_DEVICES_AT_ONCE {
        let given = devices.len();
        return Err(RegistryError::Invalid(format!(
            "{given} devices given; name 1 to {MAX_DEVICES_AT_ONCE}"
        )));
    }
    Ok(devices)
}

/// What every device would refuse is refused here, where somebody reads it.
fn check_settings(settings: &ModelSettings) -> Result<(), RegistryError> {
    if let Some(provider) = &settings.provider {
        let known: Result<engine::Provider, _> = provider.parse();
        known.map_err(|error| RegistryError::Invalid(error.to_string()))?;
    }
    if let Some(optimization) = &settings.optimization {
        let known: Result<engine::Optimization, _> = optimization.parse();
        known.map_err(|error| RegistryError::Invalid(error.to_string()))?;
    }
    let preferred = settings.preferred_batch.as_ref().map_or(0, Vec::len);
    if preferred > MAX_PREFERRED {
        return Err(RegistryError::Invalid(format!(
            "preferred_batch holds {preferred} sizes; {MAX_PREFERRED} are possible"
        )));
    }
    if settings.collect.is_some_and(|collect| !(0.0..=1.0).contains(&collect.rate)) {
        return Err(RegistryError::Invalid("collect.rate must be 0 to 1".to_owned()));
    }
    Ok(())
}

fn device_record(row: DeviceRow) -> DeviceRecord {
    let mut models: BTreeMap<String, DeviceModel> = BTreeMap::new();
    for model in row.desired.models {
        let entry = entry(&mut models, model.name.as_str());
        entry.desired = Some(model.version);
        entry.settings = model.settings;
    }
    for model in row.reported.iter().flat_map(|reported| reported.models.iter().cloned()) {
        let entry = entry(&mut models, model.name.as_str());
        entry.version = Some(model.version);
        entry.phase = Some(model.phase);
        entry.why = model.why;
        entry.active = model.active;
        entry.previous = model.previous;
        entry.engine = model.engine;
        entry.provider = model.provider;
        entry.memory_bytes = model.memory_bytes;
        entry.transfer = model.transfer;
    }
    let seen = row.seen_ms.and_then(|ms| jiff::Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok());
    let reported = row.reported.as_ref();
    DeviceRecord {
        id: row.id,
        online: row.online,
        last_seen: seen.map(|at| at.to_string()),
        agent_version: row.presence.map(|presence| presence.agent_version),
        state: reported.map(|reported| reported.agent.state.clone()),
        desired_revision: row.desired.revision,
        reported_revision: reported.map(|reported| reported.revision),
        models: models.into_values().collect(),
        ledger: reported.map(|reported| reported.ledger.clone()),
        rows_refused: row.rows_refused,
        hardware: reported.map(|reported| reported.hardware.clone()),
    }
}

fn entry<'a>(models: &'a mut BTreeMap<String, DeviceModel>, name: &str) -> &'a mut DeviceModel {
    models.entry(name.to_owned()).or_insert_with(|| DeviceModel {
        name: name.to_owned(),
        desired: None,
        settings: ModelSettings::default(),
        version: None,
        phase: None,
        why: None,
        active: None,
        previous: None,
        engine: None,
        provider: None,
        memory_bytes: None,
        transfer: None,
    })
}
