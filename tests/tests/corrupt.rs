//! A hostile or broken peer on the broker: nothing it says is believed, and what is right still arrives.

use cloud_sync::bundle::Bundle;
use cloud_sync::contract::{Fetch, Want, encode};
use cloud_sync::digest::Digest;
use cloud_sync::limits::{MAX_MESSAGE_BYTES, MAX_PACKET_BYTES};
use cloud_sync::topic::Kind;
use e2e::client::Client;
use e2e::data::{self, MODEL};
use e2e::flow::Background;
use e2e::peer::{self, Peer};
use e2e::process::{Failure, wait_until};
use e2e::site::{DEVICE, PATIENCE, Site, start_cloud};

#[test]
fn a_pull_ends_well_though_a_peer_answers_with_other_bytes() -> Result<(), Failure> {
    let mut site = Site::start("corrupt-pull")?;
    site.bring(1)?;
    let heavy = data::heavy(2, 1 << 20, &site.directory.join("bundle"))?;
    site.cloud.register(&heavy)?;
    let bundle = Bundle::open(&heavy).map_err(|error| error.to_string())?;
    // The desired state stays with the broker while cloud and device are away, so that the peer's answers are the only
    // ones that the device gets.
    assert_eq!(site.agent.process.terminate()?, 0);
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let mut peer = runtime.block_on(Peer::connect(&site.broker.url))?;
    site.cloud.text(&["deploy", &format!("{MODEL}:2"), "--device", DEVICE])?;
    runtime.block_on(peer.desired(2))?;
    site.cloud.process.kill();
    site.restart_agent()?;
    let flow = Background::start(&site.agent.http, &data::test_split()?);
    runtime.block_on(peer.answer_wrongly(bundle.digest(), bundle.encoded_manifest()))?;
    flow.wait_for(1, 1)?;
    site.cloud = start_cloud(&site.directory, &site.broker.url)?;
    site.cloud.wait_for_phase(DEVICE, MODEL, 2, "active")?;
    flow.wait_for(2, 50)?;
    let flowed = flow.stop()?;
    assert_eq!(flowed.failed, 0, "{}", flowed.why);
    Ok(())
}

#[test]
fn garbage_on_every_topic_is_counted_and_disturbs_nothing() -> Result<(), Failure> {
    let site = Site::start("corrupt-garbage")?;
    site.bring(1)?;
    let flow = Background::start(&site.agent.http, &data::test_split()?);
    let before = site.client().metric("edgewise_link_refused_total")?;
    let truncated = encode(&Fetch { wants: vec![Want { digest: Digest::of(b"x"), offset: 0 }; 3] });
    let truncated = truncated.map_err(|error| error.to_string())?;
    let truncated = truncated.get(..truncated.len() / 2).unwrap_or_default().to_vec();
    let bodies = [
        Vec::new(),
        b"{\"json\": true}".to_vec(),
        vec![0xFF; 64],
        truncated,
        // An array that says it has 2^60 elements.
        vec![0x9B, 0x10, 0, 0, 0, 0, 0, 0, 0],
        // A hundred thousand arrays within each other.
        vec![0x81; 100_000],
        vec![0xA1; MAX_MESSAGE_BYTES + 1],
    ];
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let peer = Peer::connect(&site.broker.url).await?;
        for kind in Kind::ALL {
            for body in &bodies {
                peer.publish(kind, body.clone()).await?;
            }
        }
        Ok::<_, Failure>(())
    })?;
    // Of the nine kinds of message four are for the device and five for the cloud, to which an empty presence or report
    // is one that was cleared.
    let (to_device, to_cloud) = (4 * bodies.len() as u64, 5 * bodies.len() as u64 - 2);
    site.wait_for_metric("edgewise_link_refused_total", |refused| refused == before + to_device)?;
    let cloud = Client::new(&site.cloud.http);
    wait_until(PATIENCE, || match cloud.metric("edgewise_messages_malformed_total")? {
        malformed if malformed == to_cloud => Ok(()),
        malformed => Err(format!("the cloud counts {malformed} malformed messages, not {to_cloud}")),
    })?;

    // What no client of ours sends: a message beyond what is read at all.
    let connects = site.client().metric("edgewise_link_connects_total")?;
    peer::publish_raw(&site.broker.url, Kind::Chunk, &vec![0; MAX_PACKET_BYTES + 1])?;
    site.wait_for_metric("edgewise_link_connects_total", |now| now > connects)?;

    site.bring(2)?;
    flow.wait_for(2, 50)?;
    let flowed = flow.stop()?;
    assert_eq!(flowed.failed, 0, "{}", flowed.why);
    let ledger = site.flush()?;
    assert!(e2e::site::adds_up(&ledger) && ledger["uploaded"] == flowed.total(), "{ledger}");
    Ok(())
}
