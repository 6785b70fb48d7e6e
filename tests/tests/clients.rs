//! Clients that others wrote: tritonclient, KServe's, and a validator of OpenAPI documents.

use e2e::data::{self, MODEL};
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
