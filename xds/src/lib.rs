//! What an xDS control plane says, and the services that it means: bytes in, services out, no sockets.
//!
//! In reading order:
//! * `resource` reads what the protocol carries: `listener`, `cluster`, `endpoints`. Each becomes what
//!   a service can be made of, or is [`Unfit`]. `keys` are those of a `[[service]]`, which stand in
//!   metadata where xDS has no field for them.
//! * `service` joins a listener, its cluster and the cluster's endpoints to a service.
//! * `store` has what was said last, by name, and the services as they were last good.
//!   [`Saved`] is all of it, as bytes, for the process that comes next.
//! * `protocol` is the conversation (ADS), in two variants: `sotw`, where each answer is the state of
//!   the world, and `delta`, where it is what has changed.
//!
//! # Source
//! `docs/root/api-docs/xds_protocol.rst` of Envoy, and the comments of its API's protos.

mod cluster;
mod delta;
mod endpoints;
mod keys;
mod listener;
mod protocol;
mod resource;
mod service;
mod sotw;
mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod unfit;

pub use delta::Delta;
pub use envoy_types::pb::envoy::config::core::v3::Node;
pub use envoy_types::pb::envoy::service::discovery::v3 as discovery;
pub use keys::Keys;
pub use protocol::{Answer, Protocol, Reply};
pub use resource::Kind;
pub use sotw::StateOfTheWorld;
pub use store::{Saved, Services, Store};
pub use unfit::{Trouble, Unfit, summary};

/// Bytes of a message from the control plane, at most: 100,000 backends need about 4 MiB. In memory a
/// message of empty parts takes some 20 times that, for the moment.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Bytes of one resource, at most: a cluster of 65,535 endpoints needs about 3 MiB.
pub const RESOURCE_BYTES_MAX: usize = 4 << 20;
/// Resources of a kind, at most.
pub const RESOURCES_MAX: usize = lb_core::model::SERVICES_MAX;
/// Endpoints of all clusters, at most.
pub const ENDPOINTS_MAX: usize = 1 << 20;
/// Bytes of all resources, at most, but for those of the last message: 1,048,576 endpoints need 50 to 80 MiB.
pub const BYTES_MAX: usize = 256 << 20;
/// Bytes of a name, a version or a nonce, at most.
pub const NAME_BYTES_MAX: usize = 1024;
/// Bytes of what the control plane is told of a refusal, at most.
pub const REFUSAL_BYTES_MAX: usize = 4096;
