//! trial
use engine::*;
use std::time::Duration;
fn random(shape: &[usize], t: DataType, seed: &mut u64) -> Tensor {
    let n = tensor::elements(shape).unwrap();
    let mut r = || {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        (*seed >> 11) as f64 / (1u64 << 53) as f64
    };
    macro_rules! v {
        ($v:ident,$t:ty) => {
            Data::$v((0..n).map(|_| (r() * 100.0) as $t).collect())
        };
    }
    let d = match t {
        DataType::F32 => Data::F32((0..n).map(|_| r() as f32).collect()),
        DataType::F64 => Data::F64((0..n).map(|_| r()).collect()),
        DataType::F16 => Data::F16((0..n).map(|_| half::f16::from_f64(r())).collect()),
        DataType::I8 => v!(I8, i8),
        DataType::I16 => v!(I16, i16),
        DataType::I32 => v!(I32, i32),
        DataType::I64 => v!(I64, i64),
        DataType::U8 => v!(U8, u8),
        DataType::U16 => v!(U16, u16),
        DataType::U32 => v!(U32, u32),
        DataType::U64 => v!(U64, u64),
        DataType::Bool => Data::Bool((0..n).map(|_| r() > 0.5).collect()),
        DataType::String => Data::String((0..n).map(|i| format!("é{i}")).collect()),
    };
    Tensor::new(shape.to_vec(), d).unwrap()
}
fn main() {
    let mut args = std::env::args().skip(1);
    let free: usize = args.next().unwrap().parse().unwrap();
    for path in args {
        println!("== {path}");
        let bytes = std::fs::read(&path).unwrap();
        let mut outs = vec![];
        for p in [Provider::Cpu, Provider::Tract] {
            let t = std::time::Instant::now();
            match load(&bytes, &LoadOptions { provider: p, threads: 1, ..Default::default() }) {
                Err(e) => println!("{p}: {e}"),
                Ok(mut l) => {
                    println!("{l:?} in {:?}", t.elapsed());
                    let sig = l.model.signature().clone();
                    let mut seed = 42;
                    let inputs: Tensors = sig
                        .inputs
                        .iter()
                        .map(|s| {
                            (
                                s.name.clone(),
                                random(
                                    &s.shape
                                        .iter()
                                        .enumerate()
                                        .map(|(i, d)| d.unwrap_or(if i == 0 { 1 } else { free }))
                                        .collect::<Vec<_>>(),
                                    s.data_type,
                                    &mut seed,
                                ),
                            )
                        })
                        .collect();
                    match l.model.score(&inputs) {
                        Err(e) => println!("{p} score: {e}"),
                        Ok(o) => {
                            println!(
                                "  {:?}",
                                o.iter()
                                    .map(|(n, t)| format!("{n} {} {:?}", t.data_type(), t.shape()))
                                    .collect::<Vec<_>>()
                            );
                            outs.push(o);
                            println!(
                                "  {:?}",
                                profile::latency(&mut *l.model, &inputs, Duration::from_millis(600)).unwrap()
                            );
                        }
                    }
                }
            }
        }
        if let [a, b] = &outs[..] {
            struct M(Signature, Tensors);
            impl Model for M {
                fn signature(&self) -> &Signature {
                    &self.0
                }
                fn score(&mut self, _: &Tensors) -> Result<Tensors, ScoreError> {
                    Ok(self.1.clone())
                }
            }
            println!(
                "  agree: {:?}",
                golden::check(
                    &mut M(Signature::default(), b.clone()),
                    &golden::Golden {
                        samples: vec![golden::Sample { inputs: Tensors::new(), outputs: a.clone() }]
                    },
                    1e-3,
                    1e-4
                )
            );
        }
    }
}
