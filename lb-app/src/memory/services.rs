//! The file `services`: what services are like, and after it, what has become of single ones. So a change of
//! one of ten thousand writes one.
//!
//! A row of frames: how many bytes the message has, its checksum, and a `postcard` message. Of a frame that
//! was not written whole the tables were never in force, so it is passed over.

use std::collections::HashMap;
use std::io;

use lb_core::continuity::Remembered;
use serde::{Deserialize, Serialize};

use super::{Identity, LAYOUT, Refused};
use crate::record::ServiceRecord;

/// Bytes in front of a message.
const HEAD_BYTES: usize = 8;

/// What the first frame begins with.
#[derive(Debug, Serialize, Deserialize)]
struct Beginning {
    layout: u64,
    identity: Identity,
}

/// All services.
pub(super) fn encode(
    identity: &Identity,
    services: impl ExactSizeIterator<Item = Remembered>,
) -> io::Result<Vec<u8>> {
    let beginning = Beginning { layout: LAYOUT, identity: *identity };
    frame(postcard::to_extend(&beginning, vec![0; HEAD_BYTES]), services)
}

/// Services that have become others.
pub(super) fn encode_changed(
    services: impl ExactSizeIterator<Item = Remembered>,
) -> io::Result<Vec<u8>> {
    frame(Ok(vec![0; HEAD_BYTES]), services)
}

/// A list of records behind what there is of a frame, as `postcard` has lists: how many, then each. One after
/// the other, so that no more than one of ten thousand is there twice.
fn frame(
    begun: postcard::Result<Vec<u8>>,
    services: impl ExactSizeIterator<Item = Remembered>,
) -> io::Result<Vec<u8>> {
    let begun = begun.and_then(|begun| postcard::to_extend(&services.len(), begun));
    let whole = services
        .into_iter()
        .fold(begun, |bytes, service| postcard::to_extend(&ServiceRecord::from(&service), bytes?));
    let mut bytes = whole.map_err(io::Error::other)?;
    let message = &bytes[HEAD_BYTES..];
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    let checksum = crc32fast::hash(message);
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4..HEAD_BYTES].copy_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

pub(super) fn decode(mut bytes: &[u8]) -> Result<(Identity, Vec<Remembered>), Refused> {
    let damaged = |_| Refused::Damaged;
    let message = next(&mut bytes)?.ok_or(Refused::Damaged)?;
    let (layout, _) = postcard::take_from_bytes::<u64>(message).map_err(damaged)?;
    if layout != LAYOUT {
        return Err(Refused::Version);
    }
    let (beginning, mut records) =
        postcard::from_bytes::<(Beginning, Vec<ServiceRecord>)>(message).map_err(damaged)?;
    let names = records.iter().map(|record| record.name().to_owned());
    let places: HashMap<String, usize> = names.zip(0..).collect();
    while let Some(message) = next(&mut bytes)? {
        for record in postcard::from_bytes::<Vec<ServiceRecord>>(message).map_err(damaged)? {
            let place = *places.get(record.name()).ok_or(Refused::Damaged)?;
            records[place] = record;
        }
    }
    let services: Option<Vec<Remembered>> =
        records.into_iter().map(ServiceRecord::remembered).collect();
    Ok((beginning.identity, services.ok_or(Refused::Damaged)?))
}

/// Takes the next frame's message off. `None`: there is none that is whole.
fn next<'a>(bytes: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Refused> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let [a, b, c, d, checksum @ ..] = *head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    let Some((message, rest)) = rest.split_at_checked(length) else { return Ok(None) };
    if crc32fast::hash(message) != u32::from_le_bytes(checksum) {
        return Err(Refused::Damaged);
    }
    *bytes = rest;
    Ok(Some(message))
}
