//! The generated code of package `weir.v1`.

use serde::{Serialize, Serializer};

#[expect(
    clippy::allow_attributes_without_reason,
    clippy::pedantic,
    unreachable_pub,
    reason = "generated, with more than is used here"
)]
mod v1 {
    tonic::include_proto!("weir.v1");
}

pub(crate) use v1::*;

/// The descriptors, for the reflection service.
pub(crate) const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("weir.v1");

/// Shows an enumeration's number as `"active"`, not as `3`.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn by_name<E, S>(number: &i32, serializer: S) -> Result<S::Ok, S::Error>
where
    E: TryFrom<i32> + Serialize,
    S: Serializer,
{
    match E::try_from(*number) {
        Ok(value) => value.serialize(serializer),
        Err(_) => number.serialize(serializer),
    }
}
