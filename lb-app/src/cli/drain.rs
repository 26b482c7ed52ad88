//! `weir drain`, `weir undrain`

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use super::output;
use super::remote::Remote;
use crate::api::proto::{BackendName, DrainRequest, UndrainRequest};

/// What `weir drain` and `weir undrain` take.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The backend's address; or with the port that it is listed with, as in 10.0.0.11:8080.
    #[arg(value_parser = backend)]
    backend: (IpAddr, Option<u16>),
    /// Only of this service. Absent: of all that have it.
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

fn backend(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    let alone = text.parse().map(|address| (address, None));
    let with_port = || text.parse().map(|it: SocketAddr| (it.ip(), Some(it.port())));
    alone.or_else(|_| with_port()).map_err(|_| {
        "write an IP address, as in 10.0.0.11, or with a port, as in 10.0.0.11:8080".into()
    })
}

/// Gives a backend no new flows; or, not `drain`, gives it some again.
pub(crate) fn drain(args: &Args, drain: bool) -> ExitCode {
    let Args { backend: (address, port), service, remote } = args;
    remote.run(async |mut client| {
        let backend = Some(BackendName {
            address: address.to_string(),
            port: port.map(u32::from),
            service: service.clone(),
        });
        let (version, in_force) = if drain {
            let answer = client.drain(DrainRequest { backend }).await?.into_inner();
            remote.show(&answer, |it| done(&it.services, "gets no new flows"))?;
            (answer.version, answer.in_force)
        } else {
            let answer = client.undrain(UndrainRequest { backend }).await?.into_inner();
            remote.show(&answer, |it| done(&it.services, "gets new flows again"))?;
            (answer.version, answer.in_force)
        };
        if !remote.json {
            output::text(&super::in_force(version, in_force))?;
        }
        Ok(if in_force >= version { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

fn done(services: &[String], what: &str) -> String {
    format!("it {what} of {}\n", services.join(", "))
}
