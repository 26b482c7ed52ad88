//! Backend → the frame that leaves.

use crate::burst::{Burst, Exit, Meta, Rule};
use crate::counters::Counters;
use crate::drop_reason::DropReason;
use crate::flow_hash::reduce_low;
use crate::forward::answer::{self, Refusal};
use crate::forward::nat::{self, End};
use crate::forward::{l2dsr, mss, too_big, tunnel};
use crate::frame::Frame;
use crate::model::MssClamp;
use crate::state::State;
use crate::tables::next_hop::{Port, PortId};
use crate::tables::{Path, Tables};

/// Rewrites each frame for its backend's next hop. Reads all of `meta`; writes `meta.out`; counts
/// the service's traffic. What is too big may become an answer to its sender, or leave in pieces.
///
/// Drops: [`DropReason::NextHopUnresolved`], [`DropReason::TooBig`], [`DropReason::TtlExceeded`],
/// [`DropReason::NoHeadroom`], [`DropReason::NoBuffer`].
#[inline(always)]
pub fn forward<F: Frame>(
    burst: &mut Burst<F>,
    tables: &Tables,
    port: &Port,
    counters: &Counters,
    state: &mut State<F>,
) {
    let came_by = burst.port();
    burst.for_each_numbered(|place, frame, meta| {
        if meta.rule.is_return() {
            return back(frame, meta, tables, (came_by, port), (&mut *state, counters));
        }
        let service = tables.services.get(meta.service as usize).ok_or(DropReason::NoBackend)?;
        let backend =
            service.backends.get(usize::from(meta.backend)).ok_or(DropReason::NoBackend)?;
        #[expect(clippy::cast_possible_truncation, reason = "at most HOPS_MAX")]
        let ways = backend.hops.len() as u32;
        let hop = backend
            .hops
            .get(reduce_low(meta.hash, ways) as usize)
            .ok_or(DropReason::NextHopUnresolved)?;
        meta.out = hop.out;
        let packet_len = u64::from(meta.packet_len);
        if service.mss != MssClamp::Keep {
            let packet_max = usize::from(hop.mtu).saturating_sub(backend.path.overhead());
            // Not yet what is too big: an answer quotes what came.
            if usize::from(meta.packet_len) <= packet_max {
                mss::clamp(frame, meta, service.mss, packet_max);
            }
        }
        let forwarded = match &backend.path {
            Path::Plain => l2dsr::forward(frame, meta, hop, came_by),
            Path::Tunnel(kind, ends) => tunnel(frame, meta, hop, came_by, (*kind, ends)),
            Path::Nat(station) => {
                nat::forward(frame, meta, hop, came_by, (End::Destination, station))
            }
        };
        match forwarded {
            Ok(()) => {}
            Err(DropReason::TooBig) => {
                let way = (hop, &backend.path, service.mss);
                let came = (place, came_by, port);
                too_big::handle(frame, meta, way, came, (&mut *state, counters))?;
                if matches!(meta.rule, Rule::Answer(_)) {
                    return Ok(());
                }
            }
            Err(DropReason::TtlExceeded) => {
                let refusal = Refusal::TtlExceeded;
                answer::tell(frame, meta, refusal, (came_by, port), (&mut *state, counters))?;
                return Ok(());
            }
            Err(other) => return Err(other.into()),
        }
        counters.forwarded(service.id, packet_len);
        Ok(())
    });
}

/// Sends the answer of a backend to the client, with the VIP as its source.
#[inline(never)]
fn back<F: Frame>(
    frame: &mut F,
    meta: &mut Meta,
    tables: &Tables,
    (came_by, port): (PortId, &Port),
    (state, counters): (&mut State<F>, &Counters),
) -> Result<(), Exit> {
    let found = tables.returns.get(meta.slot as usize).ok_or(DropReason::NoBackend)?;
    let service = tables.services.get(found.service as usize).ok_or(DropReason::NoBackend)?;
    let hop = tables
        .fib
        .lookup(&meta.tuple.dst, meta.tuple.is_ipv6, meta.hash)
        .ok_or(DropReason::NextHopUnresolved)?;
    meta.out = hop.out;
    if service.mss != MssClamp::Keep && meta.packet_len <= hop.mtu {
        mss::clamp(frame, meta, service.mss, hop.mtu.into());
    }
    let packet_len = u64::from(meta.packet_len);
    let refusal = match nat::forward(frame, meta, hop, came_by, (End::Source, &found.vip)) {
        Ok(()) => {
            counters.forwarded(service.id, packet_len);
            return Ok(());
        }
        Err(DropReason::TooBig) => Refusal::TooBig(hop.mtu),
        Err(DropReason::TtlExceeded) => Refusal::TtlExceeded,
        Err(other) => return Err(other.into()),
    };
    Ok(answer::tell(frame, meta, refusal, (came_by, port), (state, counters))?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::burst::{Burst, Fate, WorkerId};
    use crate::model::tests::spec;
    use crate::model::{Forward, ServiceSpec};
    use crate::sim::SimFrame;
    use crate::sim::packet::Packet;
    use crate::stage::classify::tests::{classified, tables};
    use crate::stage::select::select;
    use crate::state::Settings;
    use crate::tables::ServiceId;
    use crate::tables::next_hop::PortId;

    fn tunnel() -> ServiceSpec {
        // Behind two gateways, one a port.
        ServiceSpec { forward: Forward::IPIP, ..spec("far", "10.0.0.101", &["10.2.0.1"]) }
    }

    fn run(burst: &mut Burst<SimFrame>, tables: &Tables, counters: &Counters) {
        let settings = Settings { worker: WorkerId(0), workers: 1, punts_per_second: 1000 };
        let mut state = State::new(settings);
        forward(burst, tables, &tables.ports[0], counters, &mut state);
    }

    fn selected(tables: &Tables, packets: impl IntoIterator<Item = Packet>) -> Burst<SimFrame> {
        let mut burst = classified(tables, packets);
        select(&mut burst, tables);
        burst
    }

    #[test]
    fn each_service_forwards_in_its_own_mode_and_counts_its_traffic() {
        let tables = tables([spec("near", "10.0.0.100", &["10.0.0.11"]), tunnel()]);
        let client = "198.51.100.7:40000";
        let near = Packet::tcp(client, "10.0.0.100:80");
        let far = Packet::tcp(client, "10.0.0.101:80").with(|p| p.padding = 3);
        let big =
            near.clone().with(|p| (p.payload, p.fragment) = (vec![0; 1461], Some((0, false))));
        let counters = Counters::new(2);
        let given = [near.clone(), far.clone(), near.clone(), big];
        let mut burst = selected(&tables, given);
        run(&mut burst, &tables, &counters);

        assert_eq!(burst.drops()[DropReason::TooBig as usize], 1);
        let lengths: Vec<_> = burst.frames().iter().map(|frame| frame.bytes().len()).collect();
        let (near_len, far_len) = (near.ip().len(), far.ip().len());
        assert_eq!(lengths[..3], [14 + near_len, 14 + 20 + far_len, 14 + near_len]);
        let traffic = |id| {
            let traffic = counters.service(ServiceId(id)).unwrap();
            (traffic.frames.get(), traffic.bytes.get())
        };
        assert_eq!(traffic(0), (2, 2 * near_len as u64), "what was sent, as it came in");
        assert_eq!(traffic(1), (1, far_len as u64));
    }

    #[test]
    fn equal_ways_share_the_flows_and_keep_each() {
        let tables = tables([tunnel()]);
        let counters = Counters::new(1);
        let mut ways = BTreeMap::new();
        for round in 0..8 {
            for _ in 0..2 {
                let packet = |i| {
                    let client = format!("198.51.100.{i}:{}", 40_000 + round);
                    Packet::tcp(&client, "10.0.0.101:80")
                };
                let mut burst = selected(&tables, (0..64).map(packet));
                run(&mut burst, &tables, &counters);
                for i in 0..64 {
                    let Fate::Send(out) = burst.fate(i) else { panic!("{i}") };
                    let before = ways.insert((round, i), out);
                    assert!(before.is_none_or(|before| before == out), "{i} took another way");
                }
            }
        }
        let first = ways.values().filter(|&&out| out == PortId(0)).count();
        assert!((200..=312).contains(&first), "{first} of 512 took the first of two ways");
    }

    #[test]
    fn without_a_way_or_a_backend_nothing_leaves() {
        let mut tables = tables([spec("near", "10.0.0.100", &["10.0.0.11"])]);
        tables.services[0].backends = tables.services[0]
            .backends
            .iter()
            .map(|entry| {
                let mut entry = entry.clone();
                entry.hops.clear();
                entry
            })
            .collect();
        let counters = Counters::new(1);
        for (service, backend, expect) in [
            (0, 0, DropReason::NextHopUnresolved),
            (0, 1, DropReason::NoBackend),
            (1, 0, DropReason::NoBackend),
        ] {
            let packet = Packet::tcp("198.51.100.7:40000", "10.0.0.100:80");
            let mut burst = selected(&tables, [packet]);
            burst.for_each_live(|_, meta| {
                (meta.service, meta.backend) = (service, backend);
                Ok(())
            });
            run(&mut burst, &tables, &counters);
            assert_eq!(burst.drops()[expect as usize], 1, "{service} {backend}");
        }
        assert_eq!(counters.service(ServiceId(0)).unwrap().frames.get(), 0);
    }
}
