//! The agent as a module of IoT Edge, from outside: deployed by its twin, fed by routes, driven by methods.

mod identity;
mod inputs;
mod journey;
mod kill;
mod methods;
mod registry;
mod sources;
mod telemetry;
mod twin;
