//! What others see of an agent: metrics that Prometheus reads and the dashboard shows.

use e2e::client::Client;
use e2e::data;
use e2e::process::{Agent, Failure};
use e2e::python;

/// Nobody listens there: what tells of the cloud is exposed all the same.
const NO_CLOUD: &str = "mqtt://127.0.0.1:1";

#[test]
fn the_dashboard_shows_what_an_agent_exposes() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/observed-metrics")?;
    let agent = Agent::start_local(&directory, &data::sample(Some(2)), &["--cloud", NO_CLOUD])?;
    let window = data::test_split()?.into_iter().next().ok_or("the test split is empty")?;
    Client::new(&agent.http).predict(&window)?;
    let dashboard = e2e::repository().join("modules/grafana.json").display().to_string();
    python::run("metrics.py", &[&format!("{}/metrics", agent.http), &dashboard]).map(drop)
}
