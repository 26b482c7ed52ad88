//! What a change of what is wanted is about: the parts of control that it does not concern need not look at
//! ten thousand services.

use std::sync::Arc;

use lb_core::model::{DesiredState, Service};
use tokio::time::Instant;

/// See above.
#[derive(Clone, Copy, Debug)]
pub(super) struct Difference {
    /// When it was found out.
    pub(super) since: Instant,
    /// The addresses that the kernel answers for.
    pub(super) addresses: bool,
    /// Health checks.
    pub(super) checks: bool,
    /// How packets are forwarded.
    pub(super) modes: bool,
}

impl Difference {
    pub(super) fn between(old: &DesiredState, new: &DesiredState) -> Self {
        let since = Instant::now();
        let Some(changed) = new.changed_since(old) else {
            return Self { since, addresses: true, checks: true, modes: true };
        };
        let none = Self { since, addresses: false, checks: false, modes: false };
        changed.fold(none, |all, (old, new)| {
            let [old, new] = [old, new].map(|service: &Arc<Service>| service.spec());
            Self {
                since,
                addresses: all.addresses || (old.vip, old.pool()) != (new.vip, new.pool()),
                checks: all.checks || old.health.is_some() || new.health.is_some(),
                modes: all.modes || old.forward != new.forward,
            }
        })
    }
}
