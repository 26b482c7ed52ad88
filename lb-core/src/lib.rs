//! Weir's load balancer: a pure function of (burst of frames, tables, worker state, time).
//!
//! Nothing here knows DPDK, threads, clocks, sockets or files: they are given to it. So all of it
//! runs in a unit test, under a sanitizer, in a fuzzer, in a bench, and over a capture file.
//!
//! In reading order:
//!
//! 1. [`pipeline`]: the path of a packet, one line a stage; [`stage`] has the stages, [`forward`]
//!    the ways to reach a backend, [`wire`] the headers.
//! 2. [`burst`]: the frames that go through it together; [`frame`]: what a frame is, and where it
//!    comes from and goes to; [`drop_reason`]: why one goes nowhere.
//! 3. [`worker`]: one turn of the loop around it; [`state`]: what it remembers, [`fragments`] above
//!    all; [`pool`]: the connections of `fullnat`; [`counters`]; [`estimate`]: about how
//!    much each backend gets; [`rate`]; [`stopwatch`]: where its cycles go.
//! 4. [`model`]: what the operator wants; [`tables`]: what workers read, made of it by
//!    [`tables::compile`] with [`maglev`] tables; [`flow_hash`]: where a packet falls in them.
//! 5. [`continuity`]: what is remembered of flows that a change touches; [`sign`]: what packets say of
//!    their flows.
//!    [`admission`]: who may open connections above a service's rate.
//! 6. [`publish`]: how a new version of the tables reaches the workers.
//! 7. [`sim`]: the world in memory; [`explain`]: what would become of a packet.

pub mod admission;
pub mod burst;
pub mod continuity;
pub mod counters;
pub mod drop_reason;
pub mod estimate;
pub mod explain;
pub mod flow_hash;
pub mod forward;
pub mod fragments;
pub mod frame;
pub mod maglev;
pub mod model;
pub mod pipeline;
pub mod pool;
pub mod prefetch;
pub mod publish;
mod quote;
pub mod rate;
pub mod sign;
pub mod sim;
pub mod stage;
pub mod state;
pub mod stopwatch;
pub mod tables;
pub mod tuple;
pub mod wire;
pub mod worker;
