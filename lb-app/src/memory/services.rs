//! The file `services`: one `postcard` message, and its checksum.

use std::io;

use lb_core::continuity::Remembered;

use super::{Identity, LAYOUT, Refused};
use crate::record::ServiceRecord;

const CHECKSUM_BYTES: usize = 4;

pub(super) fn encode(identity: &Identity, services: &[Remembered]) -> io::Result<Vec<u8>> {
    let records: Vec<ServiceRecord> = services.iter().map(ServiceRecord::from).collect();
    let mut bytes = postcard::to_stdvec(&(LAYOUT, identity, records)).map_err(io::Error::other)?;
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    Ok(bytes)
}

pub(super) fn decode(bytes: &[u8]) -> Result<(Identity, Vec<Remembered>), Refused> {
    let (message, checksum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(Refused::Damaged)?;
    if crc32fast::hash(message) != u32::from_le_bytes(*checksum) {
        return Err(Refused::Damaged);
    }
    let damaged = |_| Refused::Damaged;
    let (layout, rest) = postcard::take_from_bytes::<u64>(message).map_err(damaged)?;
    if layout != LAYOUT {
        return Err(Refused::Version);
    }
    let (identity, records) =
        postcard::from_bytes::<(Identity, Vec<ServiceRecord>)>(rest).map_err(damaged)?;
    let services: Option<Vec<Remembered>> =
        records.into_iter().map(ServiceRecord::remembered).collect();
    Ok((identity, services.ok_or(Refused::Damaged)?))
}
