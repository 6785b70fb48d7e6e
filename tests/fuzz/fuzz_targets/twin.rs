#![no_main]

edgewise_fuzz::target!("twin");
