//! Why there is no connection, said for whoever has to change something: which end refuses, what, and what to do.

use rumqttc::{ConnectReturnCode, ConnectionError, StateError, TlsError};
use rustls::{AlertDescription, CertificateError, Error};

/// The reason in one line, with the library's own words behind it.
pub(super) fn explain(error: &ConnectionError) -> String {
    let advice = match (error, tls_error(error)) {
        (_, Some(Error::InvalidCertificate(why))) => of_broker(why),
        (_, Some(Error::AlertReceived(alert))) => of_ours(*alert),
        (ConnectionError::ConnectionRefused(code), _) => of_login(*code),
        _ => None,
    };
    match (advice, tls_error(error)) {
        (Some(advice), Some(error)) => format!("{advice} ({error})"),
        (Some(advice), None) => format!("{advice} ({error})"),
        (None, _) => error.to_string(),
    }
}

/// Whether a message came that is larger than any of ours.
pub(super) fn is_too_large(error: &ConnectionError) -> bool {
    use rumqttc::Error::PayloadSizeLimitExceeded;
    matches!(error, ConnectionError::MqttState(StateError::Deserialization(PayloadSizeLimitExceeded(_))))
}

/// What is wrong with the broker's certificate.
fn of_broker(why: &CertificateError) -> Option<&'static str> {
    use CertificateError as Why;
    match why {
        Why::Expired | Why::ExpiredContext { .. } => {
            Some("the broker's certificate has expired: give it a new one, or set this machine's clock right")
        }
        Why::NotValidYet | Why::NotValidYetContext { .. } => {
            Some("the broker's certificate is not good yet: set this machine's clock right")
        }
        Why::UnknownIssuer | Why::BadSignature => Some(
            "the broker's certificate is of an authority that is not trusted here: check the file of authorities",
        ),
        Why::NotValidForName | Why::NotValidForNameContext { .. } => Some(
            "the broker's certificate is for another host: check the name in the broker's URL, or give the broker \
             a certificate for this one",
        ),
        _ => None,
    }
}

/// What the broker holds against our certificate.
fn of_ours(alert: AlertDescription) -> Option<&'static str> {
    match alert {
        AlertDescription::CertificateExpired => Some(
            "the broker says that our certificate has expired: enrol anew, or set the broker's clock right",
        ),
        AlertDescription::UnknownCA => Some(
            "the broker does not trust the authority of our certificate: enrol with the registry whose broker it is",
        ),
        AlertDescription::CertificateRevoked => {
            Some("the broker says that our certificate is revoked: enrol anew")
        }
        // The latter from TLS 1.2, which has no word for it.
        AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure => {
            Some("the broker wants a certificate of ours: configure certificate and key")
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::DecryptError
        | AlertDescription::AccessDenied => Some("the broker refuses our certificate: enrol anew"),
        _ => None,
    }
}

fn of_login(code: ConnectReturnCode) -> Option<&'static str> {
    match code {
        ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => Some(
            "the broker does not let us in: check user name, password or certificate, and its access list",
        ),
        _ => None,
    }
}

/// The TLS library's own error, which travels inside those of the system.
fn tls_error(error: &ConnectionError) -> Option<&Error> {
    match error {
        ConnectionError::Tls(TlsError::TLS(error)) => Some(error),
        ConnectionError::Tls(TlsError::Io(error))
        | ConnectionError::Io(error)
        | ConnectionError::MqttState(StateError::Io(error))
        | ConnectionError::MqttState(StateError::Deserialization(rumqttc::Error::Io(error))) => {
            error.get_ref()?.downcast_ref()
        }
        _ => None,
    }
}
