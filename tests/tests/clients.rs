//! Clients that others wrote: tritonclient, KServe's, and a validator of OpenAPI documents.

use e2e::data::{self, MODEL};
use e2e::files;
use e2e::process::{Agent, Failure};
use e2e::python;

#[test]
fn clients_of_triton_and_kserve_work_unchanged() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/clients-triton")?;
    let agent = Agent::start_local(&directory, &data::sample(Some(2)), &[])?;
    let address = agent.http.trim_start_matches("http://");
    let windows = data::sample(None).join("test.csv").display().to_string();
    python::run("triton.py", &[address, MODEL, &windows])?;
    python::run("triton_grpc.py", &[address, MODEL, &windows])?;
    python::run("kserve.py", &[address, MODEL, &windows]).map(drop)
}

#[test]
fn every_kind_of_tensor_takes_every_way_in() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/clients-tensors")?;
    let (socket, keys, config) =
        (directory.join("agent.sock"), directory.join("keys"), directory.join("agent.toml"));
    files::write(&keys, "the-first-key\n")?;
    let models = ["types/identity_string", "types/identity_f16", "types/identity_bool", "types/identity_i64"];
    let models = models.iter().chain(&["two_in_two_out"]);
    let models: Vec<String> = models
        .map(|name| e2e::target_root().join(format!("test-models/{name}.onnx")).display().to_string())
        .collect();
    let (socket, keys) = (socket.display().to_string(), keys.display().to_string());
    let library = e2e::onnxruntime()?;
    let text = format!(
        "local = \"{}\"\n[http]\nsocket = \"{socket}\"\nkeys = \"{keys}\"\n[engine]\nonnxruntime = \"{}\"\n",
        models.join(","),
        library.display()
    );
    files::write(&config, text)?;
    let agent = Agent::start_configured(&directory.join("data"), &config)?;
    let address = agent.http.trim_start_matches("http://");
    python::run("tensors.py", &[address, &socket, &keys]).map(drop)
}

#[test]
fn what_describes_the_apis_is_valid() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/clients-openapi")?;
    let agent = Agent::start_local(&directory.join("agent"), &data::sample(Some(2)), &[])?;
    let cloud = e2e::process::Cloud::start(&directory.join("cloud"), 0, 0, &[])?;
    let swagger = |version: u8| format!("{}/swagger.json?version={version}", agent.http);
    let registry = format!("{}/api/openapi.json", cloud.http);
    for (url, dialect) in [(swagger(2), "2.0"), (swagger(3), "3."), (registry, "3.")] {
        python::run("openapi.py", &[&url, dialect])?;
    }
    Ok(())
}
