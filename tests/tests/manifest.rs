//! The IoT Edge module's papers: the twin's schema holds, and manifests from a real registry are what Microsoft's rules
//! and that schema allow.

use std::path::{Path, PathBuf};

use e2e::data::{self, MODEL};
use e2e::process::{Cloud, Failure};
use e2e::{files, python};
use serde_json::{Value, json};

/// What the schema says of documents: for each, its mistakes as (path, text).
fn mistakes(schema: &str, documents: &[PathBuf]) -> Result<Vec<Vec<(String, String)>>, Failure> {
    let schema = e2e::repository().join(schema).display().to_string();
    let paths: Vec<String> = documents.iter().map(|path| path.display().to_string()).collect();
    let arguments: Vec<&str> =
        [schema.as_str()].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let answer = python::run("schema.py", &arguments)?;
    let answer: Vec<Vec<Value>> =
        serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pair = |mistake: &Value| (text(&mistake["path"]), text(&mistake["error"]));
    Ok(answer.iter().map(|mistakes| mistakes.iter().map(pair).collect()).collect())
}

/// The files of `tests/twin/FOLDER`.
fn corpus(folder: &str) -> Result<Vec<PathBuf>, Failure> {
    files::below(&e2e::repository().join("tests/twin").join(folder))
}

fn read(path: &Path) -> Result<Value, Failure> {
    serde_json::from_str(&files::read(path)?).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: PathBuf, document: &Value) -> Result<PathBuf, Failure> {
    files::write(&path, document.to_string()).map(|()| path)
}

/// A module's `createOptions`, put together again.
fn options(module: &Value) -> Result<Value, Failure> {
    let settings = module["settings"].as_object().ok_or_else(|| format!("no settings: {module}"))?;
    let chunks = settings.iter().filter(|(key, _)| key.starts_with("createOptions"));
    let text: String = chunks.filter_map(|(_, chunk)| chunk.as_str()).collect();
    serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
}

#[test]
fn the_twins_schema_tells_good_from_bad_and_where() -> Result<(), Failure> {
    const SCHEMA: &str = "modules/edgewise/twin.schema.json";
    let mut good = corpus("good")?;
    assert!(!good.is_empty());
    good.push(e2e::repository().join("modules/edgewise/twin.example.json"));
    for (path, found) in good.iter().zip(mistakes(SCHEMA, &good)?) {
        assert_eq!(found, [], "{}", path.display());
    }
    let bad = corpus("bad")?;
    for (path, found) in bad.iter().zip(mistakes(SCHEMA, &bad)?) {
        // PATH~WHAT.json. Of a key that is missing or unknown the schema names the object around it, and the key.
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let expected = name.split('~').next().unwrap_or_default();
        let (around, key) = expected.rsplit_once('.').unwrap_or(("", expected));
        let [(at, error)] = found.as_slice() else { panic!("{name}: {found:?}") };
        assert!(at == expected || (at == around && error.contains(&format!("'{key}'"))), "{name}: {found:?}");
    }
    Ok(())
}

#[test]
fn manifests_are_what_iot_edge_and_the_module_take() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/manifest")?;
    let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &[])?;
    for version in [1, 2] {
        assert_eq!(cloud.register(&data::sample(Some(version)))?, version);
    }
    let (first, second) = (format!("{MODEL}:1"), format!("{MODEL}:2"));
    let password = write(directory.join("password"), &json!("secret"))?.display().to_string();
    let route = format!("readings:{MODEL}:predictions");
    let broker = ["--registry-broker", "mqtts://broker.example"];
    let feed = ["--route", &route, "--from", "meter/outputs/values=readings"];
    let long = format!("/srv/{}:/bundles", "b".repeat(700));
    let base = directory.join("smallest.json").display().to_string();
    let variants: [(&str, Vec<&str>); 6] = [
        ("smallest", [&[second.as_str()][..], &broker].concat()),
        ("no-models", [&broker[..], &["--image-user", "u", "--image-password-file", &password]].concat()),
        ("feeds", [&[first.as_str()][..], &broker, &feed].concat()),
        (
            "gpu",
            vec![
                &second,
                "--source",
                "https://models.example/",
                "--gpu",
                "--memory",
                "1 GiB",
                "--env",
                "A=1",
            ],
        ),
        ("chunked", vec![&second, "--source", "file:///bundles", "--bind", &long]),
        (
            "on-a-base",
            vec![&first, "--source", "https://models.example/", "--base", &base, "--module", "second"],
        ),
    ];
    let mut manifests = Vec::new();
    let mut twins = Vec::new();
    for (name, arguments) in &variants {
        for layered in [false, true] {
            if layered && matches!(*name, "no-models" | "on-a-base") {
                continue;
            }
            let path = directory.join(format!("{name}{}.json", if layered { "-layered" } else { "" }));
            let output = path.display().to_string();
            let mut line =
                vec!["module", "manifest", "--image", "plant.azurecr.io/edgewise:0.1.0", "-o", &output];
            line.extend(arguments);
            line.extend(layered.then_some("--layered"));
            cloud.text(&line)?;
            let manifest = read(&path)?;
            let content =
                manifest.pointer(if layered { "/content/modulesContent" } else { "/modulesContent" });
            let content = content.ok_or_else(|| format!("{name} has no content: {manifest}"))?;
            let module = if *name == "on-a-base" { "second" } else { "edgewise" };
            let (entry, twin) = if layered {
                let dotted = content[module].as_object().cloned().unwrap_or_default();
                (&content["$edgeAgent"][format!("properties.desired.modules.{module}")], undotted(dotted))
            } else {
                let desired = &content["$edgeAgent"]["properties.desired"]["modules"];
                (&desired[module], content[module]["properties.desired"].clone())
            };
            assert_eq!(options(entry)?["HostConfig"]["ReadonlyRootfs"], true, "{name}");
            twins.push(write(directory.join(format!("{name}-{layered}.twin.json")), &twin)?);
            manifests.push(path);
        }
    }
    for (path, found) in manifests.iter().zip(mistakes("tests/schemas/deployment.json", &manifests)?) {
        assert_eq!(found, [], "{}", path.display());
    }
    for (path, found) in twins.iter().zip(mistakes("modules/edgewise/twin.schema.json", &twins)?) {
        assert_eq!(found, [], "{}", path.display());
    }

    let smallest = read(&manifests[0])?;
    let model = &smallest["modulesContent"]["edgewise"]["properties.desired"]["models"][MODEL];
    let record = cloud.json(&["model", "show", &second])?;
    let expected =
        json!({"version": 2, "digest": record["digest"], "source": "registry", "size": record["size"]});
    assert_eq!(*model, expected);
    let on_a_base = manifests.last().map(|path| read(path)).transpose()?.unwrap_or_default();
    let modules = &on_a_base["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"];
    assert_eq!(modules.as_object().map(serde_json::Map::len), Some(2), "{modules}");
    Ok(())
}

/// A twin from dotted paths, as the service puts them together.
fn undotted(paths: serde_json::Map<String, Value>) -> Value {
    let mut twin = json!({});
    for (path, value) in paths {
        let mut at = &mut twin;
        for part in path.split('.').skip(2) {
            at = &mut at[part];
        }
        *at = value;
    }
    twin
}

#[test]
fn a_manifest_that_could_not_work_is_refused_with_its_exit_code() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/manifest-refused")?;
    let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &[])?;
    cloud.register(&data::sample(Some(1)))?;
    let version = format!("{MODEL}:1");
    let link = ["--registry-broker", "mqtts://broker.example"];
    let cases: [(i32, &[&str], &str); 13] = [
        (3, &["unknown:1", link[0], link[1]], "unknown:1"),
        (3, &["power-demand:9", link[0], link[1]], "power-demand:9"),
        (2, &[&version], "--registry-broker"),
        (2, &[&version, &version, link[0], link[1]], "given twice"),
        (2, &[&version, "--registry-broker", "mqtt://broker.example"], "not encrypted"),
        (2, &[&version, link[0], link[1], "--module", "$edgeHub"], "module name"),
        (2, &[&version, link[0], link[1], "--route", "a:other:b"], "other"),
        (2, &[&version, "--registry-root", "edgewise/v1/site"], "--registry-broker"),
        (2, &[&version, "--registry-broker", "mqtts://u:p@broker.example"], "--registry-password-file"),
        (2, &[&version, "--registry-broker", "mqtt://127.0.0.1"], "the container itself"),
        (2, &[&version, link[0], link[1], "--registry-ca", "/certs/ca.pem"], "/certs/ca.pem is not in"),
        (2, &["--source", "https://models.example/"], "name a model"),
        (2, &[&version, link[0], link[1], "--priority", "20"], "--target"),
    ];
    for (code, arguments, what) in cases {
        let output = cloud.edgewise(&[&["module", "manifest", "--image", "edgewise"], arguments].concat())?;
        let why = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {why}");
        assert!(why.contains(what), "{arguments:?}: {why}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    Ok(())
}

#[test]
fn the_template_and_the_images_of_all_architectures_are_one() -> Result<(), Failure> {
    let modules = e2e::repository().join("modules");
    let mut template = read(&modules.join("deployment.template.json"))?;
    // What Microsoft's tools do to a template: they fill in the variables, and write options as text.
    let desired = "/modulesContent/$edgeAgent/properties.desired";
    for module in ["systemModules/edgeAgent", "systemModules/edgeHub", "modules/edgewise"] {
        let options = template.pointer_mut(&format!("{desired}/{module}/settings/createOptions"));
        let options = options.ok_or_else(|| format!("{module} has no options"))?;
        *options = options.to_string().into();
    }
    let broker = template.pointer_mut("/modulesContent/edgewise/properties.desired/registry/broker");
    *broker.ok_or("the template names no broker")? = "mqtts://broker.example".into();
    template.as_object_mut().map(|template| template.remove("$schema-template"));
    let directory = e2e::fresh_directory("e2e/manifest-template")?;
    let manifest = write(directory.join("deployment.json"), &template)?;
    assert_eq!(mistakes("tests/schemas/deployment.json", &[manifest])?, [[]]);
    let twin = &template["modulesContent"]["edgewise"]["properties.desired"];
    let twin = write(directory.join("twin.json"), twin)?;
    assert_eq!(mistakes("modules/edgewise/twin.schema.json", &[twin])?, [[]]);

    let module = read(&modules.join("edgewise/module.json"))?;
    let platforms = module["image"]["tag"]["platforms"].as_object().cloned().unwrap_or_default();
    assert_eq!(platforms.keys().collect::<Vec<_>>(), ["amd64", "arm64v8", "arm32v7"]);
    let mut images = platforms.iter().map(|(platform, file)| {
        let path = modules.join("edgewise").join(file.as_str().unwrap_or_default());
        Ok::<_, Failure>(files::read(&path)?.replace(platform.as_str(), "ARCH"))
    });
    let first = images.next().ok_or("there are no platforms")??;
    for other in images {
        assert_eq!(other?, first);
    }
    Ok(())
}
