use super::*;

fn deployment() -> Deployment {
    let model = |version: &str, source: &str| Model {
        version: version.parse().unwrap(),
        digest: Digest::of(version.as_bytes()),
        size: 1000,
        source: source.parse().unwrap(),
    };
    Deployment {
        module: "inferAgent".parse().unwrap(),
        image: "plant.azurecr.io/edgewise:1-amd64".to_owned(),
        credentials: None,
        container: Container {
            data: "edgewise-data".parse().unwrap(),
            binds: vec!["/srv/bundles:/bundles".parse().unwrap()],
            memory: Some("512 MiB".parse().unwrap()),
            gpu: true,
            variables: vec!["EDGEWISE_ENGINE_PROVIDER=cuda".parse().unwrap()],
        },
        models: vec![model("load:3", "https://models.example/edge"), model("frost:1", "file:///bundles")],
        routes: vec!["readings:load:predictions".parse().unwrap()],
        feeds: vec!["meter/outputs/values=readings".parse().unwrap()],
        registry: None,
    }
}

fn options(module: &Value) -> Value {
    let settings = module["settings"].as_object().unwrap();
    let keys = settings.iter().filter(|(key, _)| key.starts_with("createOptions"));
    let text: String = keys.map(|(_, value)| value.as_str().unwrap()).collect();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_standard_manifest_has_runtime_module_routes_and_twin() {
    let manifest = deployment().standard(None).unwrap();
    let content = &manifest["modulesContent"];
    let agent = &content["$edgeAgent"]["properties.desired"];
    assert_eq!(agent["systemModules"]["edgeHub"]["startupOrder"], 0);
    let module = &agent["modules"]["inferAgent"];
    assert_eq!((&module["restartPolicy"], &module["startupOrder"]), (&"always".into(), &1.into()));
    assert_eq!(module["env"], json!({ "EDGEWISE_ENGINE_PROVIDER": { "value": "cuda" } }));
    let host = &options(module)["HostConfig"];
    assert_eq!(host["Binds"], json!(["edgewise-data:/data", "/srv/bundles:/bundles:ro"]));
    assert_eq!((&host["Memory"], &host["ReadonlyRootfs"]), (&(512 << 20).into(), &true.into()));
    assert_eq!(host["DeviceRequests"][0]["Capabilities"], json!([["gpu"]]));
    assert_eq!(
        content["$edgeHub"]["properties.desired"]["routes"],
        json!({
            "inferAgentUpstream": "FROM /messages/modules/inferAgent/outputs/* INTO $upstream",
            "inferAgentInput1": "FROM /messages/modules/meter/outputs/values INTO BrokeredEndpoint(\"/modules/inferAgent/inputs/readings\")",
        })
    );
    let twin = &content["inferAgent"]["properties.desired"];
    assert_eq!(twin["models"]["load"]["source"], "https://models.example/edge/load-3.bundle");
    assert_eq!(twin["models"]["frost"]["digest"], Digest::of(b"frost:1").to_string());
    assert_eq!(twin["routes"], json!([{ "input": "readings", "model": "load", "output": "predictions" }]));
}

#[test]
fn a_layer_adds_to_what_is_there_by_dotted_paths() {
    let layered = deployment().layered().unwrap();
    let content = layered["content"]["modulesContent"].as_object().unwrap();
    let keys = |section: &str| content[section].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(content.keys().collect::<Vec<_>>(), ["$edgeAgent", "$edgeHub", "inferAgent"]);
    assert_eq!(keys("$edgeAgent"), ["properties.desired.modules.inferAgent"]);
    assert_eq!(
        keys("$edgeHub"),
        ["properties.desired.routes.inferAgentUpstream", "properties.desired.routes.inferAgentInput1"]
    );
    assert_eq!(
        keys("inferAgent"),
        ["properties.desired.models.load", "properties.desired.models.frost", "properties.desired.routes"]
    );
}

#[test]
fn a_base_keeps_its_other_modules_and_no_route_of_an_earlier_time() {
    let mut base = deployment().standard(None).unwrap();
    let content = &mut base["modulesContent"];
    content["$edgeAgent"]["properties.desired"]["modules"]["meter"] = json!({ "type": "docker" });
    content["$edgeHub"]["properties.desired"]["routes"]["inferAgentInputs"] = "FROM /* INTO $upstream".into();
    content["meter"] = json!({ "properties.desired": { "interval": 1 } });
    // As the service writes it out.
    let base = Base::try_from(json!({ "id": "plant", "content": base })).unwrap();
    let mut deployment = deployment();
    assert_eq!(
        base.earlier(&deployment.module).unwrap().to_string(),
        "the base already has inferAgent: its env, createOptions, routes and twin are replaced; was: env \
         EDGEWISE_ENGINE_PROVIDER; binds edgewise-data:/data, /srv/bundles:/bundles:ro; routes inferAgentUpstream, \
         inferAgentInput1; twin keys models, routes"
    );
    assert_eq!(base.earlier(&"other".parse().unwrap()), None);

    let credentials = Credentials::new(&deployment.image, "user".to_owned(), "secret".to_owned());
    deployment.credentials = Some(credentials.unwrap());
    deployment.feeds = vec!["stranger/outputs/a=readings".parse().unwrap()];
    assert!(matches!(deployment.standard(Some(base.clone())), Err(ManifestError::NoSender(_))));
    deployment.feeds.clear();
    let manifest = deployment.standard(Some(base)).unwrap();
    let content = &manifest["modulesContent"];
    let agent = &content["$edgeAgent"]["properties.desired"];
    assert_eq!(agent["modules"].as_object().unwrap().len(), 2);
    assert_eq!(content["meter"]["properties.desired"]["interval"], 1);
    let registries = &agent["runtime"]["settings"]["registryCredentials"];
    assert_eq!(registries["plant-azurecr-io"]["username"], "user");
    let mut routes: Vec<_> =
        content["$edgeHub"]["properties.desired"]["routes"].as_object().unwrap().keys().collect();
    routes.sort();
    assert_eq!(routes, ["inferAgentInputs", "inferAgentUpstream"]);
}

#[test]
fn a_base_that_is_no_standard_deployment_is_refused_with_what_it_is() {
    let why =
        |document| Base::try_from(document).and_then(|base| deployment().standard(Some(base))).unwrap_err();
    for none in [json!(null), json!({}), json!({ "modulesContent": { "$edgeAgent": [] } })] {
        assert!(matches!(why(none), ManifestError::Base(_)));
    }
    assert_eq!(why(deployment().layered().unwrap()), ManifestError::BaseIsLayered);
    let twin = json!({ "moduleId": "$edgeAgent", "properties": { "desired": {}, "reported": {} } });
    assert_eq!(why(twin), ManifestError::BaseIsTwin);
    let mut deployment = deployment();
    let credentials = Credentials::new(&deployment.image, "user".to_owned(), "secret".to_owned());
    deployment.credentials = Some(credentials.unwrap());
    assert!(matches!(deployment.layered(), Err(ManifestError::NotLayered(_))));
}

#[test]
fn options_are_cut_at_512_characters_and_bounded() {
    let mut deployment = deployment();
    let bind = |n: usize, length: usize| format!("/srv/{n:0length$}:/b/{n}").parse().unwrap();
    deployment.container.binds =
        (0..16).map(|n| bind(n, 80)).chain(["/srv/bundles:/bundles".parse().unwrap()]).collect();
    let manifest = deployment.standard(None).unwrap();
    let module = &manifest["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["inferAgent"];
    let settings = module["settings"].as_object().unwrap();
    assert_eq!(
        settings.keys().collect::<Vec<_>>(),
        ["image", "createOptions", "createOptions01", "createOptions02", "createOptions03"]
    );
    assert!(settings.values().skip(1).all(|chunk| chunk.as_str().unwrap().len() <= 512));
    assert_eq!(options(module)["HostConfig"]["Binds"].as_array().unwrap().len(), 18);
    deployment.container.binds.extend((20..40).map(|n| bind(n, 200)));
    assert!(matches!(deployment.standard(None), Err(ManifestError::Options { .. })));
}

#[test]
fn what_could_not_work_is_refused_with_what_to_do() {
    type Change<'a> = &'a dyn Fn(&mut Deployment);
    let refused = |change: Change<'_>| {
        let mut deployment = deployment();
        change(&mut deployment);
        let why = deployment.standard(None).unwrap_err();
        assert_eq!(deployment.layered(), Err(why.clone()));
        why.to_string()
    };
    let cases: [(Change<'_>, &str); 16] = [
        (&|d| d.models.extend(d.models.clone()), "load is given twice"),
        (&|d| d.routes.push("a:other:b".parse().unwrap()), "goes through other"),
        (&|d| d.feeds.push("a/outputs/b=c".parse().unwrap()), "--route c:MODEL:OUTPUT"),
        (&|d| d.container.binds.clear(), "/bundles is not in the container"),
        (
            &|d| d.container.variables.extend(d.container.variables.clone()),
            "EDGEWISE_ENGINE_PROVIDER is given twice",
        ),
        (&|d| d.models[0].source = Source::Registry, "--registry-broker mqtts://HOST"),
        (&|d| d.models.clear(), "say where the module finds its models"),
        (&|d| d.routes.extend(d.routes.clone()), "readings:load:predictions is given twice"),
        (&|d| d.routes = (0..65).map(|n| format!("in{n}:load:out").parse().unwrap()).collect(), "65 routes"),
        (
            &|d| {
                d.routes.clear();
                d.feeds.clear();
            },
            "the 2 models",
        ),
        (&|d| d.routes[0].output = "errors".parse().unwrap(), "the module's own"),
        (&|d| d.feeds.push("inferAgent/outputs/a=readings".parse().unwrap()), "this module itself"),
        (&|d| d.container.binds.push("/srv/other:/bundles".parse().unwrap()), "mounted at /bundles"),
        (&|d| d.container.binds.push("/srv/other:/data".parse().unwrap()), "mounted at /data"),
        (
            &|d| d.container.variables.push("EDGEWISE_HTTP_LISTEN=0.0.0.0:8000".parse().unwrap()),
            "EDGEWISE_HTTP_INSECURE_REMOTE=true",
        ),
        (
            &|d| d.container.variables.push("EDGEWISE_HTTP_LISTEN=[::]:8000".parse().unwrap()),
            "EDGEWISE_HTTP_INSECURE_REMOTE=true",
        ),
    ];
    for (change, what) in cases {
        let why = refused(change);
        assert!(why.contains(what), "{why}");
    }
    let mut own_link = deployment();
    own_link.models[0].source = Source::Registry;
    own_link.container.variables = vec!["EDGEWISE_CLOUD_BROKER=mqtts://broker.example".parse().unwrap()];
    let open = ["EDGEWISE_HTTP_LISTEN=0.0.0.0:8000", "EDGEWISE_HTTP_INSECURE_REMOTE=true"];
    own_link.container.variables.extend(open.map(|variable| variable.parse().unwrap()));
    assert!(own_link.standard(None).is_ok());
}
