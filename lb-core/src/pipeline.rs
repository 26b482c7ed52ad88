//! The path of a packet, one line a stage.

use crate::burst::Burst;
use crate::counters::Counters;
use crate::drop_reason::DropReason;
use crate::estimate;
use crate::frame::Frame;
use crate::stage::admit::admit;
use crate::stage::classify::classify;
use crate::stage::connect::connect;
use crate::stage::forward::forward;
use crate::stage::fragment::fragment;
use crate::stage::parse::parse;
use crate::stage::select::select;
use crate::state::State;
use crate::stopwatch::Step;
use crate::tables::Tables;
use crate::tuple::Tuple;

/// Takes a burst from bytes to decisions. Afterwards each frame is live and rewritten, to be sent;
/// or the kernel's, another worker's, or waiting; or dropped, with a reason. `state` has further
/// frames, where packets leave in pieces.
#[inline]
pub fn process<F: Frame>(
    burst: &mut Burst<F>,
    tables: &Tables,
    counters: &Counters,
    state: &mut State<F>,
) {
    let Some(port) = tables.ports.get(burst.port().index()) else {
        return burst.for_each_live(|_, _| Err(DropReason::NotOurs.into()));
    };
    burst.set_kernel(port.kernel);
    for frame in burst.frames() {
        frame.prefetch();
    }
    state.stopwatch.lap(Step::Receive);
    // Those that do something for every frame are functions of their own, not inlined: each loop then
    // has all registers for itself.
    parse(burst, port);
    state.stopwatch.lap(Step::Parse);
    fragment(burst, tables, state);
    state.stopwatch.lap(Step::Fragment);
    classify(burst, tables);
    state.stopwatch.lap(Step::Classify);
    admit(burst, tables, port, counters, state.now);
    state.stopwatch.lap(Step::Admit);
    select(burst, tables, counters, state.now);
    state.stopwatch.lap(Step::Select);
    connect(burst, tables, state.now);
    state.stopwatch.lap(Step::Connect);
    forward(burst, tables, port, counters, state);
    state.stopwatch.lap(Step::Forward);
    if state.stopwatch.is_sample() {
        estimate::note(burst, tables);
    }
}

/// As [`process`], for packets of our own that are meant for one backend each: they go the way of the
/// service's flows there, and leave no trace. `choose` says by which service (its place in the tables)
/// and to which backend (its place there), if there is one.
pub fn deliver<F: Frame>(
    burst: &mut Burst<F>,
    tables: &Tables,
    choose: impl Fn(&Tuple) -> Option<(u32, u16)>,
    counters: &Counters,
    state: &mut State<F>,
) {
    let Some(port) = tables.ports.get(burst.port().index()) else { return };
    parse(burst, port);
    burst.for_each_live(|_, meta| {
        (meta.service, meta.backend) = choose(&meta.tuple).ok_or(DropReason::NoBackend)?;
        meta.hash = tables.hasher.hash(&meta.tuple, true);
        Ok(())
    });
    forward(burst, tables, port, counters, state);
}
