//! `weir services`

use std::mem;
use std::process::ExitCode;

use tonic::Status;

use super::output::Lean::{Left, Right};
use super::output::{self, bytes, table};
use super::remote::{Client, Remote, RemoteError, all};
use crate::api::proto::service_change::Change;
use crate::api::proto::{ListServicesRequest, Service, WatchServicesRequest};

/// What `weir services` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this service.
    service: Option<String>,
    /// Go on, and tell of each change.
    #[arg(long, conflicts_with = "service")]
    watch: bool,
    #[command(flatten)]
    remote: Remote,
}

/// Lists the services.
pub(crate) fn services(args: &Args) -> ExitCode {
    let Args { service, watch, remote } = args;
    if *watch {
        return remote.run(async |client| follow(client, remote.json).await);
    }
    remote.run(async |mut client| {
        let request = ListServicesRequest { service: service.clone() };
        let services = all(client.list_services(request).await?.into_inner()).await?;
        remote.show(&services, |services| text(services))
    })
}

/// Tells of the services as they are, and then of each change, until the balancer ends.
async fn follow(mut client: Client, json: bool) -> Result<ExitCode, RemoteError> {
    let mut changes = client.watch_services(WatchServicesRequest {}).await?.into_inner();
    let mut untold = Vec::new();
    while let Some(message) = changes.message().await? {
        if json {
            output::json_line(&message)?;
            continue;
        }
        // The version comes last, and is told first.
        match message.change {
            Some(Change::Service(service)) => untold.push(line(&service)),
            Some(Change::Removed(name)) => untold.push(format!("{name}: gone")),
            Some(Change::Version(version)) if !untold.is_empty() => {
                let changes = mem::take(&mut untold).join("\n  ");
                output::text(&format!("version {version}\n  {changes}\n"))?;
            }
            _ => {}
        }
    }
    // It never ends of itself.
    Err(Status::unavailable("the balancer has ended").into())
}

fn line(service: &Service) -> String {
    let Service { name, address, port, protocol, backends, backends_active, .. } = service;
    let (moving, forward) = (moving(service), &service.forward);
    format!(
        "{name}: {protocol} {address} port {port}, {forward}, backends {backends_active}/{backends}, \
         moving {moving}"
    )
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
            output::source(service.source(), &service.feed),
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
