//! Asks one target once.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use lb_core::model::{Probe, Via};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls;

use super::failure::Failure;
use super::icmp::Pinger;
use super::target::Target;
use super::through::{Source, Through, ThroughCell};
use super::{grpc, http, tcp, udp};

/// What checks share.
pub(super) struct Prober {
    tls: TlsConnector,
    pinger: Pinger,
    through: ThroughCell,
}

/// Where a check goes.
pub(super) struct Route<'a> {
    pub(super) to: SocketAddr,
    /// Absent: wherever the kernel sends it from.
    pub(super) from: Option<Source<'a>>,
}

impl Prober {
    pub(super) fn new(through: ThroughCell) -> Result<Self, rustls::Error> {
        let pinger = Pinger::new(fastrand::u64(..));
        Ok(Self { tls: super::tls::connector()?, pinger, through })
    }

    /// Asks `target`, and waits for the answer as long as may be. Runs where [`Self::network`] says.
    pub(super) async fn check(&self, target: &Target) -> Result<(), Failure> {
        let patience = target.check.timeout;
        match timeout(patience, self.ask(target)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::NoAnswer(patience)),
        }
    }

    /// The network that has to be asked from; absent: our own.
    pub(super) fn network(&self, target: &Target) -> Option<&Arc<Through>> {
        self.through.get().filter(|_| target.check.via == Via::Service)
    }

    async fn ask(&self, target: &Target) -> Result<(), Failure> {
        let route = &self.route(target).await?;
        match &target.check.probe {
            Probe::Tcp => tcp::check(route).await,
            Probe::Http(probe) => http::check(route, probe, &self.tls).await,
            Probe::Grpc { service, host } => grpc::check(route, service, host.as_deref()).await,
            Probe::Udp { send, expect } => udp::check(route, send, expect).await,
            Probe::Icmp => self.pinger.check(route.to.ip()).await,
        }
    }

    async fn route<'a>(&'a self, target: &'a Target) -> Result<Route<'a>, Failure> {
        let to = target.at;
        let from = match (target.check.via, self.through.get()) {
            (Via::Backend, _) => None,
            (Via::Service, Some(through)) => Some(through.source(&target.id).await?),
            (Via::Service, None) => return Err(Failure::Ours(io::ErrorKind::NotConnected.into())),
        };
        Ok(Route { to, from })
    }
}
