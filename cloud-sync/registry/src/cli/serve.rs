//! `edgewise serve`: its options.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use cloud_sync::session::{BrokerUrl, Credentials, TlsFiles};
use cloud_sync::topic::Root;
use tracing_subscriber::EnvFilter;

use super::CliError;
use crate::broker::DEFAULT_LISTEN;
use crate::serve::{Broker, Options, ServeError, secret, serve_until_signal};

/// What is logged where EDGEWISE_LOG says nothing. The embedded broker calls every lost connection an error.
const DEFAULT_LOG: &str = "info,rumqttd=off,sqlx=warn";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Where database, bundles and rows are kept.
    #[arg(long, env = "EDGEWISE_DATA", value_name = "DIR")]
    data: PathBuf,
    /// Where the HTTP API listens; port 0 takes a free one. Anything but loopback needs --token-file.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    http: SocketAddr,
    /// Where the embedded broker listens, on loopback only; port 0 takes a free one.
    #[arg(long, default_value_t = DEFAULT_LISTEN, value_name = "ADDRESS:PORT", conflicts_with = "mqtt")]
    mqtt_listen: SocketAddr,
    /// A broker to use in place of the embedded one: mqtt://HOST[:PORT] or mqtts://HOST[:PORT].
    #[arg(long, value_name = "URL")]
    mqtt: Option<BrokerUrl>,
    /// Let --mqtt be an unencrypted broker on another machine, in a closed network: whoever listens there reads all
    /// messages and our password.
    #[arg(long, requires = "mqtt")]
    insecure_remote: bool,
    /// A PEM file with the authorities of the broker's certificate. Where none is given: those of the system, or our own
    /// authority where our certificate is of it, too.
    #[arg(long, alias = "mqtt-ca", value_name = "FILE", requires = "mqtt")]
    mqtt_authorities: Option<PathBuf>,
    /// A PEM file with our certificate for an mqtts:// broker. Where neither it nor a user name is given: one of our own
    /// authority.
    #[arg(long, alias = "mqtt-cert", value_name = "FILE", requires = "mqtt_key")]
    mqtt_certificate: Option<PathBuf>,
    /// A PEM file with the key of our certificate.
    #[arg(long, value_name = "FILE", requires = "mqtt_certificate")]
    mqtt_key: Option<PathBuf>,
    /// Our user name at the broker.
    #[arg(long, value_name = "NAME", requires = "mqtt_password_file")]
    mqtt_username: Option<String>,
    /// A file whose first line is our password at the broker.
    #[arg(long, value_name = "FILE", requires = "mqtt_username")]
    mqtt_password_file: Option<PathBuf>,
    /// The database; sqlite:DIR/edgewise.db where none is given. Several registries may share
    /// postgres://USER@HOST/NAME; its password comes from PGPASSWORD or ~/.pgpass.
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// Where bundles and rows are kept; file://DIR/objects where none is given. Several registries may share
    /// s3://BUCKET/PREFIX or a directory of all their machines; who we are and where it is stands in AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT.
    #[arg(long, value_name = "URL")]
    storage: Option<String>,
    /// Where the authority lies that signs certificates; DIR/authority where none is given. Registries that share their
    /// database share it, too.
    #[arg(long, value_name = "DIR")]
    authority: Option<PathBuf>,
    /// A file whose first line is the token that callers of the HTTP API must show.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Where the devices have their topics; its last part is the site.
    #[arg(long, default_value_t = Root::default(), value_name = "TOPIC")]
    root: Root,
    /// ONNX Runtime's library, where it is not found by itself.
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
}

pub(super) fn run(arguments: Arguments) -> Result<(), CliError> {
    let filter = EnvFilter::try_from_env("EDGEWISE_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    let options = options(arguments)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CliError::Failed(format!("starting threads: {error}")))?;
    let served = runtime.block_on(serve_until_signal(options)).map_err(cli_error);
    // A model that is being proved can't be interrupted; nobody waits for it any more.
    runtime.shutdown_background();
    served
}

fn options(arguments: Arguments) -> Result<Options, CliError> {
    let broker = match arguments.mqtt {
        None => Broker::Embedded(arguments.mqtt_listen),
        Some(url) => {
            if !url.tls && !url.is_loopback() && !arguments.insecure_remote {
                return Err(CliError::Usage(format!(
                    "--mqtt {url}: unencrypted and not on this machine; use mqtts://, or --insecure-remote in a \
                     closed network"
                )));
            }
            let password =
                arguments.mqtt_password_file.as_deref().map(secret).transpose().map_err(cli_error)?;
            let credentials = arguments.mqtt_username.zip(password);
            Broker::External {
                url,
                credentials: credentials.map(|(username, password)| Credentials { username, password }),
                tls: TlsFiles {
                    authorities: arguments.mqtt_authorities,
                    certificate: arguments.mqtt_certificate,
                    key: arguments.mqtt_key,
                },
            }
        }
    };
    Ok(Options {
        data: arguments.data,
        http: arguments.http,
        broker,
        database: arguments.database,
        storage: arguments.storage,
        authority: arguments.authority,
        token_file: arguments.token_file,
        root: arguments.root,
        onnxruntime: arguments.onnxruntime,
    })
}

fn cli_error(error: ServeError) -> CliError {
    use crate::broker::BrokerError;
    use crate::objects::ObjectError;
    use crate::store::StoreError;
    match error {
        ServeError::Usage(_)
        | ServeError::Broker(BrokerError::NotLoopback(_))
        | ServeError::Store(StoreError::NotBuiltIn(_))
        | ServeError::Objects(ObjectError::NotBuiltIn(_))
        | ServeError::Tls(_) => CliError::Usage(error.to_string()),
        _ => CliError::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn of(mqtt: &[&str]) -> Result<Options, CliError> {
        let line = ["serve", "--data", "d"].iter().chain(mqtt);
        options(Line::try_parse_from(line).unwrap().arguments)
    }

    #[test]
    fn an_unencrypted_broker_elsewhere_must_be_asked_for() {
        let refused = of(&["--mqtt", "mqtt://broker.example"]);
        assert!(matches!(&refused, Err(CliError::Usage(why)) if why.contains("--insecure-remote")));
        for good in ["mqtts://broker.example", "mqtt://localhost", "mqtt://127.0.0.1:9", "mqtt://[::1]"] {
            assert!(of(&["--mqtt", good]).is_ok(), "{good}");
        }
        assert!(of(&["--mqtt", "mqtt://broker.example", "--insecure-remote"]).is_ok());
    }
}
