//! Weir: a layer-4 load balancer.

mod adapter;
mod api;
mod capture;
mod cli;
mod control;
mod counters;
mod dataplane;
mod health;
mod kernel;
mod memory;
mod offline;
mod peers;
mod plane;
mod record;
mod source;
mod tls;
mod verdict;
mod workers;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
