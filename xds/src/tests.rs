//! What services are made, and what is said about it.

use std::fmt::Write as _;

use envoy_types::pb::envoy::config::core::v3::HealthStatus;
use lb_config::PortConfig;
use lb_core::model::Service;

use crate::{Keys, Services, Store};

mod conversations;
mod recorded;
mod saved;
mod translation;

pub(crate) fn ports() -> Vec<PortConfig> {
    let file = "[[port]]\nname = 'lan0'\ndevice = 'net_tap0'\naddresses = ['10.0.0.2/24']\n";
    lb_config::parse("weir.toml", file).unwrap().ports
}

pub(crate) fn store() -> Store {
    Store::new(Keys::default().with("forward", "l2dsr"), &ports())
}

/// A service in one line: its VIP, and its backends with what is unusual of them.
pub(crate) fn shown(services: &Services) -> Vec<String> {
    let one = |service: &std::sync::Arc<Service>| {
        let spec = service.spec();
        let backend = |it: &lb_core::model::Backend| {
            let is_failed = services.failed.contains(&(spec.name.clone(), it.address, it.port));
            let mut text = it.address.to_string();
            if let Some(port) = it.port {
                write!(text, ":{port}").unwrap();
            }
            if it.weight != 1 {
                write!(text, " x{}", it.weight).unwrap();
            }
            if it.drain {
                text += " drain";
            }
            if is_failed {
                text += " failed";
            }
            text
        };
        let backends: Vec<_> = spec.backends.iter().map(backend).collect();
        format!("{} {} [{}]", spec.name, spec.vip, backends.join(", "))
    };
    services.services.iter().map(one).collect()
}

const WELL: HealthStatus = HealthStatus::Healthy;
