//! Backends that were drained by command: beside what their sources say, and as long as those list them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use lb_core::model::{Backend, DesiredState, ServiceSpec};
use tracing::warn;

/// A service's name, and a backend's address and port as it is listed.
type Entry = (String, IpAddr, Option<u16>);

/// Which backends are meant.
#[derive(Clone, Debug)]
pub(crate) struct Which {
    pub(crate) address: IpAddr,
    /// Absent: whatever port it is listed with.
    pub(crate) port: Option<u16>,
    /// Absent: of all services.
    pub(crate) service: Option<String>,
}

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DrainError {
    #[error("no service has a backend {0}")]
    NoBackend(String),
    #[error("service {0:?} has no backend {1}")]
    NotOfService(String, String),
    #[error("its source drains {0} (service {1}); change its `state` or `weight` there")]
    BySource(String, String),
    #[error("{0} is not drained")]
    NotDrained(String),
}

/// See above.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drains(BTreeSet<Entry>);

impl Drains {
    /// Was this backend drained by command?
    pub(crate) fn has(&self, spec: &ServiceSpec, backend: &Backend) -> bool {
        self.0.contains(&entry(spec, backend))
    }

    /// What is wanted then.
    pub(crate) fn applied_to(&self, desired: &DesiredState) -> DesiredState {
        desired.draining(&self.services(), |spec, backend| self.has(spec, backend))
    }

    /// Those that have drained backends: few, and only theirs need to be looked at.
    fn services(&self) -> BTreeSet<&str> {
        self.0.iter().map(|(service, ..)| &**service).collect()
    }

    /// Those of backends that are wanted: for the others it was said in vain, or is over.
    pub(crate) fn retained(&self, desired: &DesiredState) -> Self {
        let names = self.services();
        if names.is_empty() {
            return Self::default();
        }
        let specs = desired.services().iter().map(|service| service.spec());
        let specs = specs.filter(|spec| names.contains(&*spec.name));
        let wanted =
            specs.flat_map(|spec| spec.backends.iter().map(|backend| entry(spec, backend)));
        Self(wanted.filter(|entry| self.0.contains(entry)).collect())
    }

    /// With those that are meant, and the services that have them. `wanted` is what the sources say.
    pub(super) fn with(
        &self,
        which: &Which,
        wanted: &DesiredState,
    ) -> Result<(Self, Vec<String>), DrainError> {
        let meant = which.entries(wanted)?;
        let services = meant.iter().map(|(entry, _)| entry.0.clone()).collect();
        let new = meant.into_iter().map(|(entry, _)| entry);
        Ok((Self(self.0.iter().cloned().chain(new).collect()), services))
    }

    /// Without those that are meant, and the services that have them.
    pub(super) fn without(
        &self,
        which: &Which,
        wanted: &DesiredState,
    ) -> Result<(Self, Vec<String>), DrainError> {
        let meant = which.entries(wanted)?;
        if let Some((entry, _)) = meant.iter().find(|(_, by_source)| *by_source) {
            return Err(DrainError::BySource(which.to_string(), entry.0.clone()));
        }
        let taken: BTreeSet<Entry> =
            meant.into_iter().map(|(entry, _)| entry).filter(|it| self.0.contains(it)).collect();
        if taken.is_empty() {
            return Err(DrainError::NotDrained(which.to_string()));
        }
        let services = taken.iter().map(|entry| entry.0.clone()).collect();
        Ok((Self(self.0.difference(&taken).cloned().collect()), services))
    }
}

fn entry(spec: &ServiceSpec, backend: &Backend) -> Entry {
    (spec.name.clone(), backend.address, backend.port)
}

impl Which {
    /// The backends that are meant, and whether their source drains them.
    fn entries(&self, wanted: &DesiredState) -> Result<Vec<(Entry, bool)>, DrainError> {
        let specs = wanted.services().iter().map(|service| service.spec());
        let specs = specs.filter(|spec| self.service.as_ref().is_none_or(|it| *it == spec.name));
        let meant = specs.flat_map(|spec| {
            let backends = spec.backends.iter().filter(|backend| self.is(backend));
            backends.map(move |backend| (entry(spec, backend), backend.effective_weight() == 0))
        });
        let meant: Vec<_> = meant.collect();
        match &self.service {
            _ if !meant.is_empty() => Ok(meant),
            None => Err(DrainError::NoBackend(self.to_string())),
            Some(service) => Err(DrainError::NotOfService(service.clone(), self.to_string())),
        }
    }

    fn is(&self, backend: &Backend) -> bool {
        backend.address == self.address && (self.port.is_none() || backend.port == self.port)
    }
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

/// Where they outlive the process: one JSON line.
#[derive(Debug)]
pub(super) struct DrainsFile(PathBuf);

impl DrainsFile {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self(state_dir.join("drained"))
    }

    /// What the process before has left. What cannot be read is said, and nobody is drained.
    pub(super) fn read(&self) -> Drains {
        let read = match fs::read(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Drains::default(),
            read => read.and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)),
        };
        let entries = read.unwrap_or_else(|error| {
            warn!("{}: {error}; who was drained by command is drained no more", self.0.display());
            BTreeSet::new()
        });
        Drains(entries)
    }

    pub(super) fn write(&self, drains: &Drains) {
        let new = self.0.with_extension("new");
        let written = serde_json::to_vec(&drains.0)
            .map_err(io::Error::from)
            .and_then(|bytes| fs::write(&new, bytes))
            .and_then(|()| fs::rename(&new, &self.0));
        if let Err(error) = written {
            warn!("{}: {error}; the next process will not know who is drained", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::config;

    const FILE: &str = r#"
        [[port]]
        name = "lan0"
        device = "net_null0"
        [[service]]
        name = "web"
        address = "10.0.0.100"
        port = 80
        protocol = "tcp"
        forward = "nat"
        backends = [
            { address = "10.0.0.11", port = 8080 },
            { address = "10.0.0.11", port = 8081 },
            { address = "10.0.0.12", state = "drain" },
        ]
        [[service]]
        name = "dns"
        address = "10.0.0.100"
        port = 53
        protocol = "udp"
        forward = "l2dsr"
        backends = [{ address = "10.0.0.11" }]
    "#;

    fn which(address: &str, port: Option<u16>, service: Option<&str>) -> Which {
        Which { address: address.parse().unwrap(), port, service: service.map(Into::into) }
    }

    /// Which backends take no new flows, by place.
    fn drained(drains: &Drains, desired: &DesiredState) -> Vec<bool> {
        let desired = drains.applied_to(desired);
        let services = desired.services().iter();
        services.flat_map(|it| it.spec().backends.iter().map(|backend| backend.drain)).collect()
    }

    #[test]
    fn who_is_meant_is_drained_and_taken_back() {
        let file = config(FILE).desired;
        let (eleven, none) = (which("10.0.0.11", None, None), Drains::default());
        assert_eq!(drained(&none, &file), [false, false, true, false]);
        for (meant, services, expect) in [
            (eleven.clone(), &["web", "web", "dns"][..], [true, true, true, true]),
            (which("10.0.0.11", Some(8081), None), &["web"], [false, true, true, false]),
            (which("10.0.0.11", None, Some("dns")), &["dns"], [false, false, true, true]),
            (which("10.0.0.12", None, None), &["web"], [false, false, true, false]),
        ] {
            let (drains, named) = none.with(&meant, &file).unwrap();
            assert_eq!(
                (named, drained(&drains, &file)),
                (services.iter().map(|it| (*it).to_owned()).collect(), expect.to_vec())
            );
            assert_eq!(drains.with(&meant, &file).unwrap().0, drains, "once more is the same");
        }
        let (drains, _) = none.with(&eleven, &file).unwrap();
        let (drains, _) = drains.without(&which("10.0.0.11", Some(8080), None), &file).unwrap();
        assert_eq!(drained(&drains, &file), [false, true, true, true]);
        assert_eq!(drains.without(&eleven, &file).unwrap().0, none);

        let says = |result: Result<_, DrainError>| result.unwrap_err().to_string();
        for (answer, says) in [
            (
                says(none.with(&which("10.0.0.9", None, None), &file)),
                "no service has a backend 10.0.0.9",
            ),
            (
                says(none.with(&which("10.0.0.12", None, Some("dns")), &file)),
                "service \"dns\" has no backend 10.0.0.12",
            ),
            (says(none.without(&eleven, &file)), "10.0.0.11 is not drained"),
            (
                says(none.without(&which("10.0.0.12", None, None), &file)),
                "its source drains 10.0.0.12 (service web); change its `state` or `weight` there",
            ),
        ] {
            assert_eq!(answer, says);
        }
    }

    #[test]
    fn a_reload_keeps_those_that_are_listed_and_a_restart_all() {
        let file = config(FILE).desired;
        let (drains, _) = Drains::default().with(&which("10.0.0.11", None, None), &file).unwrap();
        let fewer = FILE.replace("{ address = \"10.0.0.11\", port = 8080 },", "");
        let fewer = config(&fewer).desired;
        let kept = drains.retained(&fewer);
        assert_eq!(drained(&kept, &fewer), [true, true, true]);
        assert_eq!(drained(&kept, &file), [false, true, true, true], "who comes back is as new");

        let folder = tempfile::tempdir().unwrap();
        let memory = DrainsFile::new(folder.path());
        assert_eq!(memory.read(), Drains::default());
        memory.write(&drains);
        assert_eq!(DrainsFile::new(folder.path()).read(), drains);
        fs::write(folder.path().join("drained"), "no JSON").unwrap();
        assert_eq!(memory.read(), Drains::default());
    }
}
