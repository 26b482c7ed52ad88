//! `weir backends`

use std::net::IpAddr;
use std::process::ExitCode;

use super::output::Lean::{Left, Right};
use super::output::{bytes, table};
use super::remote::{Remote, all};
use crate::api::proto::{Backend, ListBackendsRequest};

/// What `weir backends` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only those of this service.
    service: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

/// Lists the backends.
pub(crate) fn backends(args: &Args) -> ExitCode {
    let Args { service, remote } = args;
    remote.run(async |mut client| {
        let request = ListBackendsRequest { service: service.clone() };
        let backends = all(client.list_backends(request).await?.into_inner()).await?;
        remote.show(&backends, |backends| text(backends))
    })
}

fn text(backends: &[Backend]) -> String {
    let columns = [
        ("SERVICE", Left),
        ("BACKEND", Left),
        ("STATE", Left),
        ("HEALTH", Left),
        ("WEIGHT", Right),
        ("SLOTS", Right),
        ("SHARE", Right),
        ("TRACKED", Right),
        ("FRAMES", Right),
        ("BYTES", Right),
        ("NEXT HOP, OR WHY NOT", Left),
    ];
    let row = |backend: &Backend| {
        let is_taking = backend.reason.is_empty();
        let last = if is_taking { backend.next_hops.join(", ") } else { backend.reason.clone() };
        [
            backend.service.clone(),
            server(&backend.address, backend.port),
            backend.state().as_str_name().trim_start_matches("BACKEND_STATE_").to_lowercase(),
            backend.health().as_str_name().trim_start_matches("HEALTH_").to_lowercase(),
            backend.weight.to_string(),
            backend.slots.to_string(),
            format!("{:.1}%", backend.share * 100.0),
            backend.tracked_flows.to_string(),
            backend.frames.to_string(),
            bytes(backend.bytes),
            last,
        ]
    };
    table(columns, backends.iter().map(row))
}

/// Address and, if it has one of its own, port.
pub(super) fn server(address: &str, port: Option<u32>) -> String {
    match (port, address.parse::<IpAddr>()) {
        (None, _) => address.to_owned(),
        (Some(port), Ok(IpAddr::V6(address))) => format!("[{address}]:{port}"),
        (Some(port), _) => format!("{address}:{port}"),
    }
}
