//! Which backends take no traffic for want of a next hop, in the log.

use std::collections::BTreeMap;
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use lb_core::tables::compile::ways;
use lb_core::tables::next_hop::NextHops;
use lb_core::tables::{ServiceTable, Tables};
use tracing::{info, warn};

/// Backends that are named, after each change.
const SHOWN_MAX: usize = 20;

/// Why backends take no traffic, by service and address, as last logged.
#[derive(Debug, Default)]
pub(super) struct Unresolved(BTreeMap<(String, IpAddr), String>);

impl Unresolved {
    /// Says which backends take no traffic now, and which do again.
    pub(super) fn log(&mut self, tables: &Tables, next_hops: &NextHops) {
        let mut now = BTreeMap::new();
        // As nearly always, there is nobody of whom it could be said that there is a way again.
        let services: Vec<&ServiceTable> = if self.0.is_empty() {
            tables.awaiting_ways().collect()
        } else {
            tables.services.iter().map(Arc::as_ref).collect()
        };
        for spec in services.into_iter().map(|table| table.source.spec()) {
            for backend in &spec.backends {
                let way = ways(backend, spec.forward, &tables.ports, next_hops);
                let key = (spec.name.clone(), backend.address);
                match way {
                    Err(why) => drop(now.insert(key, why.to_string())),
                    Ok(_) if self.0.contains_key(&key) => {
                        info!("backend {} of service {} has a next hop", key.1, key.0);
                    }
                    Ok(_) => {}
                }
            }
        }
        let before = mem::replace(&mut self.0, now);
        let news = self.0.iter().filter(|(key, why)| before.get(*key) != Some(*why));
        for ((service, address), why) in news.clone().take(SHOWN_MAX) {
            warn!("backend {address} of service {service} takes no traffic: {why}");
        }
        let more = news.count().saturating_sub(SHOWN_MAX);
        if more > 0 {
            warn!("{more} more backends take no traffic");
        }
    }
}
