#![no_main]

edgewise_fuzz::target!("call");
