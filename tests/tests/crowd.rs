//! The scoring API under attack: it answers others meanwhile, in bounded memory.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use e2e::client::Client;
use e2e::data::{self, Window};
use e2e::files;
use e2e::process::{Agent, Failure, wait_until};
use serde_json::json;

/// What an attack may cost at most: the buffers of all connections, and four of the largest bodies.
const MOST_MEMORY: u64 = 48 << 20;

/// How long an answer may take while the API is under attack, on a busy machine.
const PROMPT: Duration = Duration::from_secs(3);

/// An agent that serves the sample, and what it took before the attack.
struct Target {
    agent: Agent,
    address: SocketAddr,
    client: Client,
    window: Window,
    memory: u64,
}

#[test]
fn others_are_answered_beside_ten_thousand_idle_connections() -> Result<(), Failure> {
    let target = Target::start("crowd-idle")?;
    let crowd = room_for(10_000)?;
    let mut idle = Vec::with_capacity(crowd);
    for number in 0..crowd {
        idle.push(connect(target.address)?);
        if number % 1000 == 0 {
            target.answers()?;
        }
    }
    target.answers()?;
    let given_up = target.client.metric("edgewise_http_connections_given_up_total")?;
    assert!(given_up >= crowd as u64 - 300, "{given_up} of {crowd} made way");
    target.is_bounded()
}

#[test]
fn others_are_answered_beside_peers_that_send_a_byte_a_second() -> Result<(), Failure> {
    let target = Target::start("crowd-slow")?;
    let body =
        "POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 900000\r\n\r\n";
    let starts = ["GET /metrics HTTP/1.1\r\nx: ", body];
    let (stop, address) = (AtomicBool::new(false), target.address);
    std::thread::scope(|scope| {
        let trickle = scope.spawn(|| -> Result<(), Failure> {
            let mut peers = Vec::new();
            for start in starts.iter().cycle().take(600) {
                let mut peer = connect(address)?;
                peer.write_all(start.as_bytes()).map_err(|error| error.to_string())?;
                peers.push(peer);
            }
            while !stop.load(Ordering::Relaxed) {
                // Those that were given up can't be written to any more.
                peers.retain_mut(|peer| peer.write_all(b" ").is_ok());
                std::thread::sleep(Duration::from_secs(1));
            }
            Ok(())
        });
        let answered = (0..50).try_for_each(|_| {
            std::thread::sleep(Duration::from_millis(100));
            target.answers()
        });
        stop.store(true, Ordering::Relaxed);
        trickle.join().map_err(|_| "the slow peers' thread panicked")??;
        answered
    })?;
    target.is_bounded()
}

#[test]
fn a_body_of_a_gigabyte_is_refused_before_it_is_here() -> Result<(), Failure> {
    let target = Target::start("crowd-body")?;
    let head = "POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let announcement = format!("{head}content-length: 1073741824\r\n\r\n");
    let (answer, _) = target.flood(&announcement, b"")?;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let announced = target.flood(&announcement, &[b' '; 65536])?;
    let mut piece = b"10000\r\n".to_vec();
    piece.extend([b' '; 0x10000]);
    piece.extend(b"\r\n");
    let chunked = target.flood(&format!("{head}transfer-encoding: chunked\r\n\r\n"), &piece)?;
    for (answer, sent) in [announced, chunked] {
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
        assert!(sent < 64 << 20, "{sent} bytes were taken");
    }
    target.answers()?;
    target.is_bounded()
}

#[test]
fn peers_that_do_not_take_their_answers_take_no_memory_for_them() -> Result<(), Failure> {
    const PEERS: usize = 40;
    const NUMBERS: usize = 1_500_000;
    let directory = e2e::fresh_directory("e2e/crowd-unread")?;
    let config = directory.join("agent.toml");
    files::write(&config, "[http]\nmax_body_bytes = \"4 MiB\"\n[collect]\nenabled = false\n")?;
    let model = e2e::target_root().join("test-models/types/identity_f32.onnx");
    let arguments = ["--config", &config.display().to_string()];
    let agent = Agent::start_local(&directory.join("agent"), &model, &arguments)?;
    let address = agent.http.trim_start_matches("http://").parse().map_err(|error| format!("{error}"))?;
    let client = Client::new(&agent.http);
    let path = "/v2/models/identity-f32/infer";
    let numbers = vec![0; NUMBERS];
    let body = json!({"inputs": [{"name": "x", "shape": [NUMBERS], "datatype": "FP32", "data": numbers}]});
    let body = body.to_string();
    let scored = || client.metric("nv_inference_request_success");
    let refused =
        || Ok::<_, Failure>(client.metric(r#"edgewise_http_responses_total{status="503"}"#).unwrap_or(0));
    let mut peers = Vec::new();
    for peer in 1..=PEERS {
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
        let mut stream = connect(address)?;
        takes_little(&stream)?;
        // One that is refused is not heard to its end.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        peers.push(stream);
        // One after the other, so that it is not their bodies that take the memory.
        wait_until(PROMPT * 3, || match scored()? + refused()? {
            answers if answers >= peer as u64 => Ok(()),
            answers => Err(format!("{answers} answers")),
        })?;
    }
    // The first answers wait for their peers in the memory that there is for all; then there is none.
    let refused = refused()?;
    println!("{refused} of {PEERS} were refused");
    assert!(refused >= PEERS as u64 / 2, "{refused} of {PEERS} were refused");
    let small = json!({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [7]}]});
    assert_eq!(client.post(path, &small)?.status, 200);
    Ok(())
}

#[test]
fn absurd_heads_are_refused_and_pipelined_requests_are_answered_in_order() -> Result<(), Failure> {
    let target = Target::start("crowd-heads")?;
    let many: String = (0..10_000).map(|number| format!("x-{number}: y\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(1 << 20));
    for headers in [many, long] {
        let (answer, _) = target.flood(&format!("GET / HTTP/1.1\r\nhost: x\r\n{headers}\r\n"), b"")?;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    let long_path = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "y".repeat(1 << 20));
    let (answer, _) = target.flood(&long_path, b"")?;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");

    const REQUESTS: usize = 1000;
    let requests: String =
        (0..REQUESTS).map(|number| format!("GET /nothing-{number} HTTP/1.1\r\nhost: x\r\n\r\n")).collect();
    let last = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let (answers, _) = target.flood(&format!("{requests}{last}"), b"")?;
    let found: Vec<usize> = answers
        .split("/nothing-")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok())
        .collect();
    assert_eq!(found, (0..REQUESTS).collect::<Vec<_>>());
    target.answers()?;
    target.is_bounded()
}

impl Target {
    fn start(name: &str) -> Result<Self, Failure> {
        let directory = e2e::fresh_directory(&format!("e2e/{name}"))?;
        let agent = Agent::start_local(&directory.join("agent"), &data::sample(Some(1)), &[])?;
        let address = agent
            .http
            .trim_start_matches("http://")
            .parse()
            .map_err(|error| format!("{}: {error}", agent.http))?;
        let client = Client::new(&agent.http);
        let window = data::test_split()?.into_iter().next().ok_or("the test split is empty")?;
        client.predict(&window)?;
        let memory = agent.process.peak_memory()?;
        Ok(Self { agent, address, client, window, memory })
    }

    /// Somebody else, who connects now, is answered soon.
    fn answers(&self) -> Result<(), Failure> {
        let begun = Instant::now();
        let other = Client::new(&self.agent.http);
        other.predict(&self.window)?;
        assert_eq!(other.get("/metrics")?.status, 200);
        assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
        Ok(())
    }

    /// Sends a head, and what follows over and over until it is refused or a gigabyte is sent; gives the answer, which is
    /// empty where the connection was closed over it, and how many bytes went out.
    fn flood(&self, head: &str, more: &[u8]) -> Result<(String, u64), Failure> {
        let mut peer = connect(self.address)?;
        let mut writing = peer.try_clone().map_err(|error| error.to_string())?;
        let (head, more) = (head.to_owned(), more.to_vec());
        let writer = std::thread::spawn(move || {
            let mut sent = 0;
            if writing.write_all(head.as_bytes()).is_ok() && !more.is_empty() {
                while sent < 1 << 30 && writing.write_all(&more).is_ok() {
                    sent += more.len() as u64;
                }
            }
            sent
        });
        let mut answer = Vec::new();
        let _ = peer.read_to_end(&mut answer);
        let sent = writer.join().map_err(|_| "the writer panicked")?;
        Ok((String::from_utf8_lossy(&answer).into_owned(), sent))
    }

    fn is_bounded(&self) -> Result<(), Failure> {
        let grown = self.agent.process.peak_memory()?.saturating_sub(self.memory);
        println!("the attack took {} kB", grown / 1024);
        assert!(grown <= MOST_MEMORY, "the attack took {grown} bytes");
        Ok(())
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(address).map_err(|error| format!("connecting: {error}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).map_err(|error| error.to_string())?;
    Ok(stream)
}

/// Has the system keep little of what comes for a peer that does not read.
fn takes_little(stream: &TcpStream) -> Result<(), Failure> {
    let bytes: libc::c_int = 4096;
    // SAFETY: setsockopt takes a descriptor that is open for the call, and reads the number that lives as long.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
    if set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().to_string()) }
}

/// Lets this process have so many connections, or as many as it may.
fn room_for(connections: usize) -> Result<usize, Failure> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls are given a limit that lives.
    let raised = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    let free = usize::try_from(limit.rlim_max).unwrap_or(usize::MAX).saturating_sub(1000);
    if raised == 0 && free > 1000 {
        Ok(connections.min(free))
    } else {
        Err("no room for connections".to_owned())
    }
}
