//! `edgewise model`: register, list, show, tag, delete, pull.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use cloud_sync::bundle::Bundle;
use cloud_sync::name::{ModelName, ModelVersion};

use super::{CliError, Context, output, pair};
use crate::api::{LabelChange, ModelPage, ModelRecord, TensorRecord};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a bundle directory, a .bundle file or a bare .onnx the next version of a model.
    Register(Register),
    /// List versions.
    List(List),
    /// Show a version, or the latest one of a model.
    Show {
        /// NAME or NAME:VERSION
        #[arg(value_name = "NAME[:VERSION]")]
        model: String,
    },
    /// Set tags of a version.
    Tag {
        /// NAME:VERSION
        version: ModelVersion,
        /// The tags to set.
        #[arg(required = true, value_parser = pair, value_name = "KEY=VALUE")]
        tags: Vec<(String, String)>,
    },
    /// Delete a version that no device needs.
    Delete {
        /// NAME:VERSION
        version: ModelVersion,
    },
    /// Download a bundle.
    Pull {
        /// NAME:VERSION
        version: ModelVersion,
        /// A directory that is made, or a file that ends in .bundle.
        #[arg(short, long, value_name = "DIR|FILE.bundle")]
        output: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct Register {
    /// A bundle directory, a .bundle file or a bare .onnx.
    path: PathBuf,
    /// The model's name.
    #[arg(long)]
    name: ModelName,
    /// A tag, which can be changed later.
    #[arg(long = "tag", value_parser = pair, value_name = "KEY=VALUE")]
    tags: Vec<(String, String)>,
    /// A property, which can't.
    #[arg(long = "property", value_parser = pair, value_name = "KEY=VALUE")]
    properties: Vec<(String, String)>,
    /// What the model does, in place of what model.toml says.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Of this model only.
    #[arg(long)]
    name: Option<ModelName>,
    /// With this tag.
    #[arg(long = "tag", value_name = "KEY[=VALUE]")]
    tags: Vec<String>,
    /// With this property.
    #[arg(long = "property", value_name = "KEY[=VALUE]")]
    properties: Vec<String>,
    /// The latest version of each model only.
    #[arg(long)]
    latest: bool,
}

pub(super) fn run(context: &Context, verb: Verb) -> Result<(), CliError> {
    match verb {
        Verb::Register(arguments) => register(context, &arguments),
        Verb::List(arguments) => list(context, &arguments),
        Verb::Show { model } => show(context, &model),
        Verb::Tag { version, tags } => tag(context, &version, tags),
        Verb::Delete { version } => delete(context, &version),
        Verb::Pull { version, output } => pull(context, &version, &output),
    }
}

fn register(context: &Context, arguments: &Register) -> Result<(), CliError> {
    let path = &arguments.path;
    if !path.exists() {
        return Err(CliError::NotFound(format!("{} is not there", path.display())));
    }
    let bundle = Bundle::open(path).map_err(|error| CliError::Refused(error.to_string()))?;
    let pairs = |key: &'static str, pairs: &[(String, String)]| {
        pairs.iter().map(|(k, v)| (key, format!("{k}={v}"))).collect::<Vec<_>>()
    };
    let mut query = pairs("tag", &arguments.tags);
    query.extend(pairs("property", &arguments.properties));
    query.extend(arguments.description.clone().map(|text| ("description", text)));
    let size = bundle.manifest().size();
    let bar = output::progress(&format!("registering {}", arguments.name), Some(size), context.json);
    let registered = context.client.register(arguments.name.as_str(), &query, &bundle, |sent| {
        bar.set_position(sent);
        if sent == size {
            bar.set_message("proving it on the registry's engines");
        }
    });
    bar.finish_and_clear();
    let registered = registered?;
    if context.json {
        return output::json(&registered);
    }
    let model = &registered.model;
    let verified: Vec<&str> =
        model.engines.iter().filter(|e| e.verified).map(|e| e.engine.as_str()).collect();
    output::line(&format!(
        "{} registered: {} in {} chunks, {} new bytes; verified on {}",
        model.id,
        output::bytes(model.size),
        registered.chunks,
        registered.new_bytes,
        verified.join(", ")
    ))
}

fn list(context: &Context, arguments: &List) -> Result<(), CliError> {
    let mut query = vec![("limit", "1000".to_owned()), ("latest", arguments.latest.to_string())];
    query.extend(arguments.name.as_ref().map(|name| ("name", name.to_string())));
    query.push(("tags", arguments.tags.join(",")));
    query.push(("properties", arguments.properties.join(",")));
    let mut models: Vec<ModelRecord> = Vec::new();
    loop {
        let mut asked = query.clone();
        asked.extend(models.last().map(|last| ("after", last.id.clone())));
        let page: ModelPage = context.client.get("/api/models", &asked)?;
        models.extend(page.models);
        if page.next.is_none() {
            break;
        }
    }
    if context.json {
        return output::json(&models);
    }
    let row = |model: ModelRecord| {
        vec![
            model.id,
            output::bytes(model.size),
            model.created_time,
            output::labels(&model.tags),
            output::optional(model.description),
        ]
    };
    output::table(
        &["VERSION", "SIZE", "REGISTERED", "TAGS", "DESCRIPTION"],
        models.into_iter().map(row).collect(),
    )
}

fn show(context: &Context, model: &str) -> Result<(), CliError> {
    let (name, version) = model.split_once(':').unwrap_or((model, "latest"));
    let name: ModelName = name.parse().map_err(|error| CliError::Usage(format!("{error}")))?;
    let record: ModelRecord = context.client.get(&format!("/api/models/{name}/versions/{version}"), &[])?;
    if context.json {
        return output::json(&record);
    }
    let tensors = |list: &[TensorRecord]| {
        let text =
            list.iter().map(|tensor| format!("{}: {} {:?}", tensor.name, tensor.datatype, tensor.shape));
        text.collect::<Vec<_>>().join(", ")
    };
    let engines = record.engines.iter().map(|engine| match &engine.why {
        None => format!("{} (verified, {} golden samples)", engine.engine, engine.golden_samples),
        Some(why) => format!("{} (not verified: {why})", engine.engine),
    });
    let framework = format!(
        "{} {}",
        output::optional(record.framework.as_ref()),
        record.framework_version.as_deref().unwrap_or_default()
    );
    let rows = [
        ("version", record.id.clone()),
        ("registered", record.created_time.clone()),
        ("description", output::optional(record.description.as_ref())),
        ("framework", framework),
        ("licence", output::optional(record.license.as_ref())),
        ("tags", output::labels(&record.tags)),
        ("properties", output::labels(&record.properties)),
        ("size", output::bytes(record.size)),
        ("digest", record.digest.clone()),
        ("inputs", tensors(&record.signature.inputs)),
        ("outputs", tensors(&record.signature.outputs)),
        ("engines", engines.collect::<Vec<_>>().join("; ")),
    ];
    rows.iter().try_for_each(|(key, value)| output::line(format!("{key:12} {value}").trim_end()))
}

fn tag(context: &Context, version: &ModelVersion, tags: Vec<(String, String)>) -> Result<(), CliError> {
    let change = LabelChange {
        tags: tags.into_iter().map(|(key, value)| (key, Some(value))).collect(),
        properties: BTreeMap::new(),
    };
    let record: ModelRecord = context.client.patch(&path_of(version), &change)?;
    if context.json {
        return output::json(&record);
    }
    output::line(&format!("{} tagged: {}", record.id, output::labels(&record.tags)))
}

fn delete(context: &Context, version: &ModelVersion) -> Result<(), CliError> {
    context.client.delete(&path_of(version), &[])?;
    if context.json {
        return output::json(&serde_json::json!({ "deleted": version.to_string() }));
    }
    output::line(&format!("{version} deleted; its number is not given again"))
}

fn pull(context: &Context, version: &ModelVersion, output_path: &Path) -> Result<(), CliError> {
    let record: ModelRecord = context.client.get(&path_of(version), &[])?;
    let as_file = output_path.extension().is_some_and(|extension| extension == "bundle");
    if !as_file && output_path.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(CliError::Usage(format!("{} is not empty; name a new directory", output_path.display())));
    }
    let parent =
        output_path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new()
        .suffix(".bundle")
        .tempfile_in(parent)
        .map_err(failed("making a file in", parent))?;
    let bar = output::progress(&format!("pulling {version}"), Some(record.size), context.json);
    let mut download = bar.wrap_read(context.client.download(&format!("{}/bundle", path_of(version)), &[])?);
    let copied = io::copy(&mut download, &mut temporary.as_file());
    bar.finish_and_clear();
    copied.map_err(|error| {
        CliError::Unreachable(format!("the download was cut off: {error}; pull it again"))
    })?;
    let damaged =
        |error: &dyn std::fmt::Display| CliError::Failed(format!("{version}: {error}; pull it again"));
    let bundle = Bundle::open(temporary.path()).map_err(|error| damaged(&error))?;
    if bundle.digest().to_string() != record.digest {
        return Err(damaged(&"the download has another digest than the registry says"));
    }
    if as_file {
        bundle
            .each_chunk(|_, _| Ok::<(), cloud_sync::bundle::BundleError>(()))
            .map_err(|error| damaged(&error))?;
        temporary.as_file().sync_all().map_err(failed("writing", output_path))?;
        temporary.persist(output_path).map_err(|error| failed("writing", output_path)(error.error))?;
    } else {
        for entry in &bundle.manifest().files {
            let path = output_path.join(entry.path.as_str());
            let directory = path.parent().unwrap_or(output_path);
            fs::create_dir_all(directory).map_err(failed("making", directory))?;
            let bytes = bundle.read(&entry.path).map_err(|error| damaged(&error))?;
            let mut file = File::create_new(&path).map_err(failed("making", &path))?;
            io::Write::write_all(&mut file, &bytes).map_err(failed("writing", &path))?;
        }
    }
    if context.json {
        return output::json(
            &serde_json::json!({ "version": version.to_string(), "path": output_path, "size": record.size }),
        );
    }
    output::line(&format!("{version} pulled to {}: {}", output_path.display(), output::bytes(record.size)))
}

fn path_of(version: &ModelVersion) -> String {
    format!("/api/models/{}/versions/{}", version.name, version.version)
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> CliError + use<> {
    let path = path.to_owned();
    move |error| CliError::Failed(format!("{doing} {}: {error}", path.display()))
}
