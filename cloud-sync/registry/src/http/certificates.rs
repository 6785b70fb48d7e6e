//! Certificates for devices and for the broker, signed by the registry's authority.

use axum::Json;
use axum::extract::{Path, State};
use cloud_sync::name::DeviceId;

use super::Api;
use super::problem::Body;
use crate::api::{BrokerCertificateRequest, CertificateRecord, CertificateRequest, Problem};
use crate::authority::{DEFAULT_DAYS, Holder, Signed};
use crate::error::RegistryError;

/// Signs a device's certificate for its link to the broker. It may be asked for again, with any key.
#[utoipa::path(
    post, path = "/api/devices/{id}/certificate", operation_id = "certify_device", tag = "devices",
    params(("id" = String, Path)), request_body = CertificateRequest,
    responses(
        (status = 200, body = CertificateRecord, description = "the certificate"),
        (status = 400, body = Problem, description = "the id, the request or the time makes no sense")
    )
)]
pub(super) async fn device(
    State(api): State<Api>,
    Path(id): Path<String>,
    Body(asked): Body<CertificateRequest>,
) -> Result<Json<CertificateRecord>, RegistryError> {
    let id: DeviceId = id.parse()?;
    let (authority, name, days) = (api.authority.clone(), id.to_string(), asked.days.unwrap_or(DEFAULT_DAYS));
    let sign = move || authority.sign(&asked.request, Holder::Device(&id), days);
    let signed = tokio::task::spawn_blocking(sign).await??;
    tracing::info!(device = %name, until = %signed.until, "a certificate was signed");
    Ok(Json(record(&api, signed)))
}

/// Signs the broker's certificate.
#[utoipa::path(
    post, path = "/api/broker/certificate", operation_id = "certify_broker", tag = "operations",
    request_body = BrokerCertificateRequest,
    responses(
        (status = 200, body = CertificateRecord, description = "the certificate"),
        (status = 400, body = Problem, description = "the hosts, the request or the time make no sense")
    )
)]
pub(super) async fn broker(
    State(api): State<Api>,
    Body(asked): Body<BrokerCertificateRequest>,
) -> Result<Json<CertificateRecord>, RegistryError> {
    let (authority, hosts, days) = (api.authority.clone(), asked.hosts, asked.days.unwrap_or(DEFAULT_DAYS));
    let named = hosts.join(" ");
    let sign = move || authority.sign(&asked.request, Holder::Broker(&hosts), days);
    let signed = tokio::task::spawn_blocking(sign).await??;
    tracing::info!(hosts = %named, until = %signed.until, "a broker's certificate was signed");
    Ok(Json(record(&api, signed)))
}

fn record(api: &Api, signed: Signed) -> CertificateRecord {
    CertificateRecord {
        certificate: signed.certificate,
        authorities: signed.authorities,
        until: signed.until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        broker: api.broker.to_string(),
        root: api.parts.link.root().to_string(),
    }
}
