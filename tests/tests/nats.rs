//! The whole journey on a NATS server, which has no shared subscriptions and does not say so.

use e2e::nats::Nats;
use e2e::process::Failure;
use e2e::site::{DEVICE, PATIENCE, start_agent, start_cloud};
use e2e::{files, journey, process};

#[test]
fn the_journey_on_nats_without_shared_subscriptions() -> Result<(), Failure> {
    let directory = e2e::fresh_directory("e2e/nats")?;
    let broker = Nats::start(&directory.join("broker"))?;
    let cloud = start_cloud(&directory, &broker.url)?;
    let agent = start_agent(&directory, &broker.url)?;
    journey::whole(&cloud, &agent, DEVICE, &directory)?;
    process::wait_until(PATIENCE, || {
        let log = files::read(&directory.join("cloud/serve.log"))?;
        let said = log.matches("no shared subscriptions").count();
        if said == 1 { Ok(()) } else { Err(format!("it was said {said} times")) }
    })
}
