//! The engine behind a bare socket: a tensor's bytes go in, the outputs' bytes come out. No protocol could cost less.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use e2e::process::Failure;
use engine::{Data, Model, Tensor, Tensors};

use crate::floor::numbers;
use crate::sample;
use crate::work::Work;

/// A connection to an engine that a thread of this process calls.
pub(crate) struct Socket {
    stream: TcpStream,
    question: Vec<u8>,
    answer: Vec<u8>,
}

impl Socket {
    pub(crate) fn open(work: &Work) -> Result<Self, Failure> {
        let mut engine = sample::engine(work)?;
        let outputs = engine.score(&work.tensors()?).map_err(|error| error.to_string())?;
        let answer = vec![0; bytes(&outputs)?.len()];
        let question = work.bytes();
        let (name, shape, length) = (work.input, work.shape.clone(), question.len());
        let opened = TcpListener::bind("127.0.0.1:0").and_then(|listener| {
            let stream = TcpStream::connect(listener.local_addr()?)?;
            let (accepted, _) = listener.accept()?;
            accepted.set_nodelay(true)?;
            stream.set_nodelay(true)?;
            Ok((stream, accepted))
        });
        let (stream, accepted) = opened.map_err(|error| format!("opening a socket: {error}"))?;
        // Ends with the connection.
        std::thread::spawn(move || serve(accepted, engine.as_mut(), name, &shape, length));
        Ok(Self { stream, question, answer })
    }

    pub(crate) fn ask(&mut self) -> Result<(), Failure> {
        let asked = self.stream.write_all(&self.question);
        let asked = asked.and_then(|()| self.stream.read_exact(&mut self.answer));
        asked.map_err(|error| format!("asking over a socket: {error}"))
    }
}

fn serve(
    mut stream: TcpStream,
    engine: &mut dyn Model,
    name: &str,
    shape: &[usize],
    length: usize,
) -> Result<(), Failure> {
    let mut question = vec![0; length];
    loop {
        stream.read_exact(&mut question).map_err(|error| error.to_string())?;
        let tensor =
            Tensor::from_vec(shape.to_vec(), numbers(&question)).map_err(|error| error.to_string())?;
        let inputs = [(name, tensor)].into_iter().collect();
        let outputs = engine.score(&inputs).map_err(|error| error.to_string())?;
        stream.write_all(&bytes(&outputs)?).map_err(|error| error.to_string())?;
    }
}

fn bytes(outputs: &Tensors) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    for (name, tensor) in outputs.iter() {
        match tensor.data() {
            Data::F32(numbers) => bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes())),
            Data::I64(numbers) => bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes())),
            _ => return Err(format!("output {name} is of a type that the bench does not send")),
        }
    }
    Ok(bytes)
}
