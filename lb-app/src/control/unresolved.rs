//! Which backends take no traffic for want of a next hop, in the log.

use std::collections::BTreeMap;
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use lb_core::tables::compile::ways;
use lb_core::tables::next_hop::{NextHops, Unresolved as Why};
use lb_core::tables::{ServiceTable, Tables};
use tracing::{info, warn};

/// Backends that are named, after each change, as such that take no traffic and as such that do again.
const SHOWN_MAX: usize = 20;

/// Why backends take no traffic, by service and address, as last logged.
#[derive(Debug, Default)]
pub(super) struct Unresolved(BTreeMap<String, BTreeMap<IpAddr, Why>>);

impl Unresolved {
    /// Says which backends take no traffic now, and which do again.
    pub(super) fn log(&mut self, tables: &Tables, next_hops: &NextHops) {
        let (mut now, mut found) = (BTreeMap::new(), 0);
        // As nearly always, there is nobody of whom it could be said that there is a way again.
        let services: Vec<&ServiceTable> = if self.0.is_empty() {
            tables.awaiting_ways().collect()
        } else {
            tables.services.iter().map(Arc::as_ref).collect()
        };
        for spec in services.into_iter().map(|table| table.source.spec()) {
            let before = self.0.get(&spec.name);
            let mut of_service = BTreeMap::new();
            for backend in &spec.backends {
                let way = ways(backend, spec.forward, &tables.ports, next_hops);
                let address = backend.address;
                match way {
                    Err(why) => drop(of_service.insert(address, why)),
                    Ok(_) if before.is_some_and(|before| before.contains_key(&address)) => {
                        found += 1;
                        if found <= SHOWN_MAX {
                            info!("backend {address} of service {} has a next hop", spec.name);
                        }
                    }
                    Ok(_) => {}
                }
            }
            if !of_service.is_empty() {
                now.insert(spec.name.clone(), of_service);
            }
        }
        if found > SHOWN_MAX {
            info!("{} more backends have a next hop", found - SHOWN_MAX);
        }
        let before = mem::replace(&mut self.0, now);
        let all = self.0.iter().flat_map(|(name, all)| all.iter().map(move |it| (name, it)));
        let is_new = |(name, (address, why)): &(&String, (&IpAddr, &Why))| {
            before.get(*name).and_then(|before| before.get(*address)) != Some(*why)
        };
        let mut news = all.filter(is_new);
        for (name, (address, why)) in news.by_ref().take(SHOWN_MAX) {
            warn!("backend {address} of service {name} takes no traffic: {why}");
        }
        let more = news.count();
        if more > 0 {
            warn!("{more} more backends take no traffic");
        }
    }
}
