//! Who is asked what.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lb_core::model::{Backend, DesiredState, HashKey, HealthCheck, Probe, Service, Via};

/// A backend of a service, and how it is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) id: Id,
    /// Where to ask; of a ping, any port.
    pub(super) at: SocketAddr,
    pub(super) check: Arc<HealthCheck>,
    /// Does it take flows, if healthy? Only such count for panic.
    pub(super) is_active: bool,
}

/// A backend of a service, as the model tells them apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id {
    pub(super) service: Arc<str>,
    pub(super) address: IpAddr,
    /// As in the backend's own description.
    pub(super) port: Option<u16>,
}

impl Target {
    /// Would `other` be asked the same, as often?
    pub(super) fn is_asked_like(&self, other: &Self) -> bool {
        let of = |it: &Self| (it.at, it.check.via, it.check.interval, it.check.timeout);
        of(self) == of(other) && self.check.probe == other.check.probe
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.check.probe {
            Probe::Icmp => write!(f, "backend {}", self.id.address)?,
            _ if self.check.via == Via::Backend => write!(f, "backend {}", self.at)?,
            _ => write!(f, "backend {} at {}", self.id.address, self.at)?,
        }
        write!(f, " of service {}", self.id.service)
    }
}

/// The targets of all services. It follows changes, and does not look at what stays as it is.
#[derive(Debug)]
pub(super) struct Targets {
    desired: DesiredState,
    /// By place of the service; none, if it has no checks.
    of: Vec<Arc<[Target]>>,
}

impl Targets {
    pub(super) fn none() -> Self {
        Self { desired: DesiredState::empty(HashKey([0; 16])), of: Vec::new() }
    }

    /// Those of these services.
    pub(super) fn follow(&mut self, desired: &DesiredState) -> &[Arc<[Target]>] {
        let (old, new) = (self.desired.services(), desired.services());
        if old.len() == new.len() {
            for ((old, new), targets) in old.iter().zip(new).zip(&mut self.of) {
                if !Arc::ptr_eq(old, new) {
                    *targets = targets_of(new);
                }
            }
        } else {
            self.of = new.iter().map(|service| targets_of(service)).collect();
        }
        self.desired = desired.clone();
        &self.of
    }
}

fn targets_of(service: &Service) -> Arc<[Target]> {
    let spec = service.spec();
    let Some(check) = &spec.health else { return Arc::default() };
    let (name, check) = (Arc::from(spec.name.as_str()), Arc::new(check.clone()));
    let target = |backend: &Backend| Target {
        id: Id { service: Arc::clone(&name), address: backend.address, port: backend.port },
        at: {
            let address = match check.via {
                Via::Backend => backend.address,
                Via::Service => spec.vip.address.addr(),
            };
            // There is a port, unless none is needed: the model sees to that.
            (address, check.port.or(spec.port_of(backend)).unwrap_or_default()).into()
        },
        check: Arc::clone(&check),
        is_active: backend.effective_weight() > 0,
    };
    spec.backends.iter().map(target).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_backend_is_asked_at_its_port() {
        let config = lb_config::parse(
            "",
            "[[port]]\nname = 'lan0'\ndevice = 'net_tap0'\naddresses = ['10.0.0.2/24']\n\
             [[service]]\nname = 'web'\naddress = '10.0.0.100'\nport = 80\nprotocol = 'tcp'\n\
             forward = 'nat'\nhealth = { check = 'tcp' }\n\
             backends = [{ address = '10.1.0.11' }, { address = '10.1.0.12', port = 8080 },\n\
                         { address = '10.1.0.13', state = 'drain' }]\n\
             [[service]]\nname = 'own-port'\naddress = '10.0.0.101'\nport = 'any'\n\
             protocol = 'tcp'\nforward = 'l2dsr'\nhealth = { check = 'http', port = 8081 }\n\
             backends = [{ address = '10.0.0.11' }]\n\
             [[service]]\nname = 'ping'\naddress = '10.0.0.102'\nport = 'any'\n\
             protocol = 'any'\nforward = 'l2dsr'\nhealth = { check = 'icmp' }\n\
             backends = [{ address = '10.0.0.11' }]\n\
             [[service]]\nname = 'through'\naddress = '10.0.0.104'\nport = 80\nprotocol = 'tcp'\n\
             forward = 'l2dsr'\nhealth = { check = 'tcp', via = 'service' }\n\
             backends = [{ address = '10.0.0.11' }]\n\
             [[service]]\nname = 'unchecked'\naddress = '10.0.0.103'\nport = 80\n\
             protocol = 'tcp'\nforward = 'l2dsr'\nbackends = [{ address = '10.0.0.11' }]\n",
        )
        .unwrap();
        let mut targets = Targets::none();
        let targets = targets.follow(&config.desired).concat();
        let shown: Vec<_> = targets.iter().map(ToString::to_string).collect();
        let expected = [
            "backend 10.1.0.11:80 of service web",
            "backend 10.1.0.12:8080 of service web",
            "backend 10.1.0.13:80 of service web",
            "backend 10.0.0.11:8081 of service own-port",
            "backend 10.0.0.11 of service ping",
            "backend 10.0.0.11 at 10.0.0.104:80 of service through",
        ];
        assert_eq!(shown, expected);
        assert_eq!(targets[1].id.port, Some(8080));
        assert_eq!(targets[3].id.port, None);
        let active: Vec<_> = targets.iter().map(|target| target.is_active).collect();
        assert_eq!(active, [true, true, false, true, true, true]);
    }

    #[test]
    fn what_has_not_changed_is_the_same() {
        let config = |backends: &[&str]| {
            let port = "[[port]]\nname = 'lan0'\ndevice = 'net_tap0'\n".to_owned();
            let services = backends.iter().enumerate().map(|(n, backend)| {
                format!(
                    "[[service]]\nname = 'web{n}'\naddress = '10.0.0.10{n}'\nport = 80\n\
                     protocol = 'tcp'\nforward = 'l2dsr'\nhealth = {{ check = 'tcp' }}\n\
                     backends = [{{ address = '{backend}' }}]\n"
                )
            });
            lb_config::parse("", &(port + &services.collect::<String>())).unwrap().desired
        };
        let before = config(&["10.0.0.11", "10.0.0.12", "10.0.0.13"]);
        let other = config(&["10.0.0.11", "10.0.0.14", "10.0.0.13"]);
        let mut services = before.services().to_vec();
        services[1] = Arc::clone(&other.services()[1]);
        let after = before.followed_by(services.clone()).unwrap();
        services.remove(0);
        let fewer = after.followed_by(services).unwrap();

        let mut targets = Targets::none();
        let known = targets.follow(&before).to_vec();
        assert_eq!(known.concat().len(), 3);
        let new = targets.follow(&after).to_vec();
        let same: Vec<bool> = known.iter().zip(&new).map(|(a, b)| Arc::ptr_eq(a, b)).collect();
        assert_eq!(same, [true, false, true]);
        assert_eq!(new[1][0].to_string(), "backend 10.0.0.14:80 of service web1");
        let names = targets.follow(&fewer).concat();
        let names: Vec<&str> = names.iter().map(|target| &*target.id.service).collect();
        assert_eq!(names, ["web1", "web2"]);
    }
}
