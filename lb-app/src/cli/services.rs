//! `weir services`

use std::process::ExitCode;

use super::output::Lean::{Left, Right};
use super::output::{bytes, table};
use super::remote::{Remote, all};
use crate::api::proto::{ListServicesRequest, Service};

/// What `weir services` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this service.
    service: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

/// Lists the services.
pub(crate) fn services(args: &Args) -> ExitCode {
    let Args { service, remote } = args;
    remote.run(async |mut client| {
        let request = ListServicesRequest { service: service.clone() };
        let services = all(client.list_services(request).await?.into_inner()).await?;
        remote.show(&services, |services| text(services))
    })
}

fn text(services: &[Service]) -> String {
    let columns = [
        ("SERVICE", Left),
        ("ADDRESS", Left),
        ("PORT", Left),
        ("PROTOCOL", Left),
        ("FORWARD", Left),
        ("FROM", Left),
        ("BACKENDS", Right),
        ("MOVING", Right),
        ("TRACKED", Right),
        ("FRAMES", Right),
        ("BYTES", Right),
    ];
    let row = |service: &Service| {
        [
            service.name.clone(),
            service.address.clone(),
            service.port.clone(),
            service.protocol.clone(),
            service.forward.clone(),
            service.source().as_str_name().trim_start_matches("SOURCE_").to_lowercase(),
            format!("{}/{}", service.backends_active, service.backends),
            moving(service),
            service.tracked_flows.to_string(),
            service.frames.to_string(),
            bytes(service.bytes),
        ]
    };
    table(columns, services.iter().map(row))
}

/// The share of the slots that is in transition.
fn moving(service: &Service) -> String {
    match service.slots_in_transition {
        0 => "-".into(),
        moving => {
            let share = f64::from(moving) / f64::from(service.slots.max(1));
            format!("{:.1}%", share * 100.0)
        }
    }
}
