//! Asks one target once.

use lb_core::model::Probe;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls;

use super::failure::Failure;
use super::icmp::Pinger;
use super::target::Target;
use super::{grpc, http, tcp, udp};

/// What checks share.
pub(super) struct Prober {
    tls: TlsConnector,
    pinger: Pinger,
}

impl Prober {
    pub(super) fn new() -> Result<Self, rustls::Error> {
        Ok(Self { tls: super::tls::connector()?, pinger: Pinger::new(fastrand::u64(..)) })
    }

    /// Asks `target`, and waits for the answer as long as may be.
    pub(super) async fn check(&self, target: &Target) -> Result<(), Failure> {
        let patience = target.check.timeout;
        match timeout(patience, self.ask(target)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::NoAnswer(patience)),
        }
    }

    async fn ask(&self, target: &Target) -> Result<(), Failure> {
        let address = target.socket();
        match &target.check.probe {
            Probe::Tcp => tcp::check(address).await,
            Probe::Http(probe) => http::check(address, probe, &self.tls).await,
            Probe::Grpc { service, host } => grpc::check(address, service, host.as_deref()).await,
            Probe::Udp { send, expect } => udp::check(address, send, expect).await,
            Probe::Icmp => self.pinger.check(address.ip()).await,
        }
    }
}
