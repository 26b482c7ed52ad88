//! The path of a packet, one line a stage.

use crate::burst::Burst;
use crate::counters::Counters;
use crate::drop_reason::DropReason;
use crate::frame::Frame;
use crate::stage::{classify::classify, forward::forward, parse::parse, select::select};
use crate::tables::Tables;

/// Takes a burst from bytes to decisions. Afterwards each frame is live and rewritten, to be sent;
/// or the kernel's; or dropped, with a reason.
#[inline]
pub fn process<F: Frame>(burst: &mut Burst<F>, tables: &Tables, counters: &Counters) {
    let Some(port) = tables.ports.get(burst.port().index()) else {
        return burst.for_each_live(|_, _| Err(DropReason::NotOurs.into()));
    };
    burst.set_kernel(port.kernel);
    for frame in burst.frames() {
        frame.prefetch();
    }
    parse(burst, port);
    classify(burst, tables);
    select(burst, tables);
    forward(burst, tables, counters);
}
