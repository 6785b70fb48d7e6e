//! `edgewise module`: the deployment manifest of the agent as an Azure IoT Edge module.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, Subcommand};
use cloud_sync::name::ModelVersion;
use serde_json::Value;

use super::{CliError, Context, output};
use crate::api::ModelRecord;
use crate::durable::replace;
use crate::manifest::{
    Base, Bind, Container, Credentials, Deployment, Feed, Memory, Model, ModuleName, RegistryLink, Route,
    Source, Variable, Volume,
};
use crate::serve::secret;

/// Largest base manifest: many times what IoT Hub takes.
const MAX_BASE_BYTES: u64 = 1024 * 1024;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Write the deployment manifest for model versions, and on standard error the `az` command that applies it.
    Manifest(Box<Manifest>),
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("fleet").args(["target", "layered"]).multiple(true)))]
pub(super) struct Manifest {
    /// What the module runs; none leaves it to `edgewise deploy`, over the link to the registry.
    #[arg(value_name = "NAME:VERSION")]
    versions: Vec<ModelVersion>,
    /// The module's name.
    #[arg(long, default_value = "edgewise", value_name = "NAME")]
    module: ModuleName,
    /// Where to write it; standard output where none is given.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The module's image.
    #[arg(long, value_name = "IMAGE", value_parser = image, help_heading = "Image")]
    image: String,
    /// The user that the image's registry asks for; the manifest then holds the password.
    #[arg(long, value_name = "NAME", requires = "image_password_file", help_heading = "Image")]
    image_user: Option<String>,
    /// A file whose first line is the password of that user.
    #[arg(long, value_name = "FILE", requires = "image_user", help_heading = "Image")]
    image_password_file: Option<PathBuf>,
    /// Where the module gets the bundles: registry, or https://HOST/PATH/ or file:///PATH/ with NAME-VERSION.bundle files.
    #[arg(long, default_value = "registry", value_name = "SOURCE", help_heading = "Registry")]
    source: Source,
    #[command(flatten)]
    registry: Option<RegistryLink>,
    /// What arrives on this input is scored by this model, and answered on this output. Without routes: amlInput to amlOutput.
    #[arg(long = "route", value_name = "INPUT:MODEL:OUTPUT", help_heading = "Flow")]
    routes: Vec<Route>,
    /// What another module says arrives on this input.
    #[arg(long = "from", value_name = "MODULE/outputs/OUTPUT=INPUT", help_heading = "Flow")]
    feeds: Vec<Feed>,
    /// Where the agent keeps its data: a volume, or a directory of the device that user 10001 may write.
    #[arg(long, default_value = "edgewise-data", value_name = "VOLUME|PATH", help_heading = "Container")]
    data: Volume,
    /// What else of the device the container sees, read only.
    #[arg(long = "bind", value_name = "HOST_PATH:PATH", help_heading = "Container")]
    binds: Vec<Bind>,
    /// Most memory that the container may take, such as 512 MiB.
    #[arg(long, value_name = "SIZE", help_heading = "Container")]
    memory: Option<Memory>,
    /// Let the container have the device's NVIDIA GPUs.
    #[arg(long, help_heading = "Container")]
    gpu: bool,
    /// A variable of the container's environment, such as EDGEWISE_LOG_LEVEL=debug.
    #[arg(long = "env", value_name = "NAME=VALUE", help_heading = "Container")]
    variables: Vec<Variable>,
    /// Write a layered deployment, which adds this module to the devices' standard deployment.
    #[arg(long, help_heading = "Apply")]
    layered: bool,
    /// A manifest to add this module to, so that its other modules stay; without one, the IoT Edge runtime alone.
    #[arg(long, value_name = "FILE", conflicts_with = "layered", help_heading = "Apply")]
    base: Option<PathBuf>,
    /// For the printed command: the IoT hub.
    #[arg(long, default_value = "HUB", value_name = "NAME", help_heading = "Apply")]
    hub: String,
    /// For the printed command: the one device to apply it to.
    #[arg(long, value_name = "ID", conflicts_with_all = ["target", "layered"], help_heading = "Apply")]
    device: Option<String>,
    /// For the printed command: which devices to deploy to, such as "tags.site='plant-7'".
    #[arg(long, value_name = "CONDITION", help_heading = "Apply")]
    target: Option<String>,
    /// For the printed command: the deployment's priority; a layer's must be above its base's.
    #[arg(long, default_value_t = 10, value_name = "NUMBER", requires = "fleet", help_heading = "Apply")]
    priority: u32,
}

pub(super) fn run(context: &Context, verb: Verb) -> Result<(), CliError> {
    match verb {
        Verb::Manifest(arguments) => manifest(context, *arguments),
    }
}

fn manifest(context: &Context, arguments: Manifest) -> Result<(), CliError> {
    let wrong = |error: &dyn std::fmt::Display| CliError::Usage(error.to_string());
    if arguments.versions.is_empty() && arguments.source != Source::Registry {
        return Err(CliError::Usage("name a model: --source alone does nothing".to_owned()));
    }
    let command = command(&arguments);
    let known_as = arguments.registry.as_ref().map(|_| {
        let own = arguments.variables.iter().find(|variable| variable.name() == "EDGEWISE_DEVICE");
        let device = arguments.device.as_deref().unwrap_or("DEVICE");
        let name = own.map_or_else(|| format!("{device}.{}", arguments.module), |own| own.value().to_owned());
        format!("the registry will know the module as {name}")
    });
    let base = arguments.base.as_deref().map(read_base).transpose()?;
    let earlier = base.as_ref().and_then(|base| base.earlier(&arguments.module));
    let password =
        arguments.image_password_file.as_deref().map(secret).transpose().map_err(|error| wrong(&error))?;
    let credentials = arguments.image_user.zip(password);
    let credentials = credentials.map(|(user, password)| Credentials::new(&arguments.image, user, password));
    let models = arguments.versions.into_iter().map(|version| model(context, version, &arguments.source));
    let deployment = Deployment {
        credentials: credentials.transpose().map_err(|error| wrong(&error))?,
        models: models.collect::<Result<_, _>>()?,
        module: arguments.module,
        image: arguments.image,
        container: Container {
            data: arguments.data,
            binds: arguments.binds,
            memory: arguments.memory,
            gpu: arguments.gpu,
            variables: arguments.variables,
        },
        routes: arguments.routes,
        feeds: arguments.feeds,
        registry: arguments.registry,
    };
    let manifest = if arguments.layered { deployment.layered() } else { deployment.standard(base) };
    let manifest = manifest.map_err(|error| wrong(&error))?;
    match &arguments.output {
        None => output::json(&manifest)?,
        Some(path) => write(path, &manifest).map_err(failed("writing", path))?,
    }
    // Beside the manifest, which may be what standard output is for.
    let mut notes = io::stderr().lock();
    for note in earlier.map(|earlier| earlier.to_string()).into_iter().chain(known_as).chain([command]) {
        let _ = writeln!(notes, "{note}");
    }
    Ok(())
}

fn model(context: &Context, version: ModelVersion, source: &Source) -> Result<Model, CliError> {
    let path = format!("/api/models/{}/versions/{}", version.name, version.version);
    let record: ModelRecord = context.client.get(&path, &[])?;
    let digest = record.digest.parse().map_err(|error| {
        CliError::Failed(format!("the registry's record of {version} can't be deployed: {error}"))
    })?;
    Ok(Model { version, digest, size: record.size, source: source.clone() })
}

fn image(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err("use the name of an image, without white space".to_owned());
    }
    Ok(text.to_owned())
}

/// What applies the manifest; words in capitals are for the reader to fill in.
fn command(arguments: &Manifest) -> String {
    let content = arguments.output.as_ref().map_or("FILE".to_owned(), |path| path.display().to_string());
    let mut words = vec!["az", "iot", "edge"].into_iter().map(str::to_owned).collect::<Vec<_>>();
    let mut add = |more: &[&str]| words.extend(more.iter().map(|word| quoted(word)));
    let target = arguments.target.as_deref().or(arguments.layered.then_some("CONDITION"));
    let Some(target) = target else {
        let device = arguments.device.as_deref().unwrap_or("DEVICE");
        add(&["set-modules", "--hub-name", &arguments.hub, "--device-id", device, "--content", &content]);
        return words.join(" ");
    };
    add(&[
        "deployment",
        "create",
        "--hub-name",
        &arguments.hub,
        "--deployment-id",
        &deployment_id(arguments),
    ]);
    add(&["--content", &content, "--target-condition", target]);
    add(&["--priority", &arguments.priority.to_string()]);
    if arguments.layered {
        add(&["--layered"]);
    }
    words.join(" ")
}

/// A name for the deployment, in the lower case that IoT Hub asks for; it must be new for each of them.
fn deployment_id(arguments: &Manifest) -> String {
    let versions = arguments.versions.iter().map(|version| format!("-{}-{}", version.name, version.version));
    let id = format!("{}{}", arguments.module, versions.collect::<String>());
    // IoT Hub takes 128 characters.
    id.to_lowercase().chars().take(128).collect()
}

/// A word as POSIX shells, PowerShell and people read it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let escaped = word.chars().flat_map(|c| "\\\"$`".contains(c).then_some('\\').into_iter().chain([c]));
    format!("\"{}\"", escaped.collect::<String>())
}

fn read_base(path: &Path) -> Result<Base, CliError> {
    let size = path.metadata().map_err(failed("reading", path))?.len();
    if size > MAX_BASE_BYTES {
        return Err(CliError::Usage(format!("{} is no manifest: it has {size} bytes", path.display())));
    }
    let text = fs::read_to_string(path).map_err(failed("reading", path))?;
    let document: Value = serde_json::from_str(&text)
        .map_err(|error| CliError::Usage(format!("{} is not JSON: {error}", path.display())))?;
    Base::try_from(document).map_err(|error| CliError::Usage(error.to_string()))
}

/// For the owner's eyes only, whoever could read an earlier file there: a manifest can hold the password of a container
/// registry. A place that is no file, such as a pipe, is written to as it is.
fn write(path: &Path, manifest: &Value) -> io::Result<()> {
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return writeln!(File::options().write(true).open(path)?, "{manifest:#}");
    }
    replace(path, format!("{manifest:#}\n").as_bytes(), 0o600)
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> CliError + use<> {
    let path = path.to_owned();
    move |error| CliError::Failed(format!("{doing} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_command_is_one_that_a_shell_reads() {
        assert_eq!(quoted("plant-7"), "plant-7");
        assert_eq!(
            quoted("tags.site='a b' AND NOT tags.x='$y'"),
            r#""tags.site='a b' AND NOT tags.x='\$y'""#
        );
        assert_eq!(quoted(""), "\"\"");
    }

    #[test]
    fn a_manifest_is_for_its_owner_alone_also_where_a_file_was_open_to_all() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("manifest.json");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        write(&path, &Value::Bool(true)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "true\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        write(Path::new("/dev/null"), &Value::Null).unwrap();
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    }
}
