"""Fragments."""

from kit import *

for way, inner, name in per_way():
    world = World(MODES[way[0]])
    config = world.config
    dst = vip(10, way, inner)
    dns, web = f"dns-{name}", f"web-{name}"

    def parts(ranges, packet=None, tags=()):
        packet = packet or datagram(dst, pattern(392))
        return flow_of(packet), [eth(piece, tags) for piece in cut(packet, ranges)]

    THREE = [(0, 160), (160, 320), (320, None)]
    flow, (a, b, c) = parts(THREE)
    case(f"{name}: fragments in order", config, *train(world, dns, flow, [a, b, c]))
    flow, (a, b, c) = parts(THREE)
    case(
        f"{name}: fragments reversed",
        config,
        *train(world, dns, flow, [c, b, a], first=2),
        order=[2, 0, 1],
    )
    flow, (a, b, c) = parts(THREE)
    case(
        f"{name}: fragments shuffled",
        config,
        *train(world, dns, flow, [b, a, c], first=1),
        order=[1, 0, 2],
    )
    flow, (a, b, c) = parts(THREE, datagram(dst, pattern(392), 80, make=tcp), [7])
    case(
        f"{name}: fragments of TCP in a VLAN",
        config,
        *train(world, web, flow, [c, a, b], first=1),
        order=[1, 0, 2],
    )
    flow, (a, b, c) = parts(THREE)
    whole = udp(dst)
    steps = train(world, dns, flow, [c, a, b], first=1)
    steps.insert(1, world.send(dns, eth(whole), flow_of(whole)))
    case(f"{name}: others pass while fragments wait", config, *steps, order=[1, 2, 0, 3])
    flow, (a, b, c) = parts(THREE)
    steps = train(world, dns, flow, [a, b, c])
    twice = [drop("fragment_overlap", a), drop("fragment_overlap", b)]
    case(f"{name}: fragments come twice", config, steps[0], twice[0], steps[1], twice[1], steps[2])
    flow, (a, b, c, d) = parts([(0, 160), (152, 320), (320, 360), (360, None)])
    [sent] = train(world, dns, flow, [a])
    case(
        f"{name}: fragments overlap",
        config,
        sent,
        *(drop("fragment_overlap", part) for part in (b, c, d)),
    )
    flow, (a, b) = parts([(0, 160), (160, None)])
    case(
        f"{name}: the first fragment never comes",
        config,
        drop("fragment_timeout", b, 0.0),
        punt(eth(tcp("10.0.0.2", 22)), 3.0),
    )
    flow, (a, b, c) = parts(THREE)
    steps = train(world, dns, flow, [a, b], at=[3.0, 3.1])
    case(f"{name}: the first fragment comes too late", config, drop("fragment_timeout", c), *steps)
    one, other_one = datagram(dst, pattern(392)), datagram(dst, pattern(392))
    pieces = cut(one, THREE)
    again = cut(other_one, THREE)
    flows = [flow_of(one), flow_of(other_one)]
    frames = [[eth(piece) for piece in each] for each in (pieces, again)]
    steps = train(world, dns, flows[0], [frames[0][2], frames[0][0], frames[0][1]], first=1)
    more = train(world, dns, flows[1], [frames[1][1], frames[1][2], frames[1][0]], first=2)
    mixed = [steps[0], more[0], more[1], steps[1], more[2], steps[2]]
    case(f"{name}: fragments of two datagrams", config, *mixed, order=[3, 0, 4, 1, 2, 5])
    small = 8 if way[0] == "l2dsr" else 16
    tiny = datagram(dst, pattern(392), 80, make=tcp)
    _, (a, b) = parts([(0, small), (small, None)], tiny)
    later = ["fragment_tiny", "fragment_timeout"]
    case(
        f"{name}: tiny first fragment of TCP",
        config,
        drop("fragment_tiny", a),
        drop(later, b),
        bad=True,
    )
    flow, (a, b) = parts([(0, 24), (24, None)], datagram(dst, pattern(392), 80, make=tcp))
    case(f"{name}: least first fragment of TCP", config, *train(world, web, flow, [a, b]))
    flow, (a, b) = parts([(0, 8), (8, None)])
    case(
        f"{name}: least first fragment of UDP",
        config,
        *train(world, dns, flow, [b, a], first=1),
        order=[1, 0],
    )
    packet = datagram(dst, pattern(392), 514)
    flow, (a, b) = parts([(0, 160), (160, None)], packet)
    case(
        f"{name}: fragments of one client for one port",
        config,
        *train(world, f"log-{name}", flow, [b, a], first=1),
        order=[1, 0],
    )
    packet = datagram(dst, pattern(392), 54)
    _, (a, b, c) = parts(THREE, packet)
    case(f"{name}: fragments to no service's port", config, punt(a), punt(b), punt(c))
    _, (a, b, c) = parts(THREE, datagram(dst, pattern(392), 54))
    case(f"{name}: fragments to no service's port, reversed", config, punt(c), punt(b), punt(a))
    flow, (a, b, c) = parts(THREE, datagram(dst, pattern(392), tos=0xB9))
    case(
        f"{name}: fragments with DSCP and ECN",
        config,
        *train(world, dns, flow, [b, a, c], first=1),
        order=[1, 0, 2],
    )

    world = World(ANY)
    # Nothing needs the ports: nothing is held.
    for kind, net, what in (("sticky", 22, "any port, one client"), ("any", 21, "any protocol")):
        packet = datagram(vip(net, way, inner), pattern(392), 7777)
        flow, (a, b, c) = parts(THREE, packet)
        case(
            f"{name}: fragments of {what}",
            ANY,
            *train(world, f"{kind}-{name}", flow, [c, b, a], first=2),
        )
    packet = datagram(vip(23, way, inner), pattern(392), 7777)
    flow, (a, b, c) = parts(THREE, packet)
    case(
        f"{name}: fragments of any port",
        ANY,
        *train(world, f"ports-{name}", flow, [c, b, a], first=2),
        order=[2, 0, 1],
    )
    packet = sctp(vip(20, way, inner), chunk=SCTPChunkData(data=pattern(392), tsn=1), flags=0)
    flow, (a, b, c) = parts(THREE, packet)
    case(
        f"{name}: fragments of SCTP",
        ANY,
        *train(world, f"sctp-{name}", flow, [c, a, b], first=1),
        order=[1, 0, 2],
    )
    _, (a, b) = parts([(0, 8), (8, None)], packet)
    case(
        f"{name}: tiny first fragment of SCTP",
        ANY,
        drop("fragment_tiny", a),
        drop(later, b),
        bad=True,
    )

# The finer points once, where the hash can be seen outside: GUE.
for (way, inner, name), config in ((x, MODES["gue"]) for x in per_way([("gue", 6)])):
    world, dst, dns = World(config), vip(10, way, inner), f"dns-{name}"

    def parts(ranges, packet=None, **more):
        packet = packet or datagram(dst, pattern(392))
        return flow_of(packet), [eth(piece) for piece in cut(packet, ranges, **more)]

    flow, (a, b, c, d) = parts([(0, 160), (80, 120), (160, 320), (320, None)])
    steps = train(world, dns, flow, [a, c, d])
    case(
        f"fragments-{inner}: one within another",
        config,
        steps[0],
        drop("fragment_overlap", b),
        *steps[1:],
    )
    flow, (a, b) = parts([(0, 160), (160, None)])
    steps = train(world, dns, flow, [b, a], first=1)
    case(
        f"fragments-{inner}: one comes twice while it waits",
        config,
        steps[0],
        drop("fragment_overlap", b),
        steps[1],
        order=[2, 0, 1],
    )
    _, (a, b, c) = parts([(0, 160), (160, 320), (304, None)])
    case(
        f"fragments-{inner}: those that wait overlap",
        config,
        *(drop("fragment_overlap", part) for part in (b, c, a)),
    )
    flow, (a, b, c) = parts([(0, 160), (160, 240), (160, None)])
    [first, second] = train(world, dns, flow, [a, b])
    case(
        f"fragments-{inner}: one around another", config, first, second, drop("fragment_overlap", c)
    )
    _, (a, b, c) = parts([(0, 200), (160, 320), (320, None)])
    case(
        f"fragments-{inner}: the first overlaps what waits",
        config,
        *(drop("fragment_overlap", part) for part in (b, a, c)),
    )
    # The same id again, after the memory of the first flow has gone.
    one, two = datagram(dst, pattern(392)), datagram(dst, pattern(392))
    before = cut(one, [(0, 160), (160, None)])
    ident = {4: slice(4, 6), 6: slice(44, 48)}[inner]
    after = []
    for piece, like in zip(cut(two, [(0, 160), (160, None)]), before):
        piece = piece[: ident.start] + like[ident] + piece[ident.stop :]
        after.append(fixed_header(piece) if inner == 4 else piece)
    steps = train(world, dns, flow_of(one), list(map(eth, before)))
    steps += train(world, dns, flow_of(two), list(map(eth, after)), at=[3.0, 3.001])
    case(f"fragments-{inner}: an id comes again", config, *steps)
    flow, (a, b) = parts([(0, 160), (160, None)])
    steps = train(world, dns, flow, [a], at=[0.0]) + [drop("fragment_timeout", b, 3.0)]
    case(f"fragments-{inner}: the last comes too late", config, *steps)
    # One id, but another protocol, or another source: other datagrams.
    packet = datagram(dst, pattern(392))
    stranger = packet.copy()
    stranger.src = "198.51.100.8" if inner == 4 else "2001:db8::8"
    stranger[UDP].chksum = None
    a, b = cut(packet, [(0, 160), (160, None)])
    if inner == 4:
        c = IP(a).copy()
        c.src, c.chksum = stranger.src, None
        c, d = bytes(c), None
        d = IP(b).copy()
        d.src, d.chksum = stranger.src, None
        d = bytes(d)
    else:
        src = packed(stranger.src)
        c, d = (piece[:8] + src + piece[24:] for piece in (a, b))
    flow, strange = flow_of(packet), flow_of(stranger)
    mine = train(world, dns, flow, [eth(b), eth(a)], first=1)
    theirs = train(world, dns, strange, [eth(d), eth(c)], first=1)
    case(
        f"fragments-{inner}: one id of two sources",
        config,
        mine[0],
        theirs[0],
        mine[1],
        theirs[1],
        order=[2, 0, 3, 1],
        bad=True,
    )
    # Most of a large datagram in 20 parts, backwards.
    big = datagram(dst, pattern(8000))
    flow = flow_of(big)
    ranges = [(at, at + 400) for at in range(0, 7600, 400)] + [(7600, None)]
    pieces = list(map(eth, cut(big, ranges)))[::-1]
    if len(pieces) <= 16:
        case(
            f"fragments-{inner}: many",
            config,
            *train(world, dns, flow, pieces, first=len(pieces) - 1),
            order=[len(pieces) - 1, *range(len(pieces) - 1)],
        )
    steps = train(world, dns, flow, pieces[::-1])
    case(f"fragments-{inner}: many in order", config, *steps)
    if inner == 6:
        packet = datagram(dst, pattern(392))
        flow, frames = parts([(0, 160), (160, None)], packet, extensions=[HOP_BY_HOP, ROUTING])
        case(
            "fragments-6: extensions before the fragment header",
            config,
            *train(world, dns, flow, frames[::-1], first=1),
            order=[1, 0],
        )
        packet = v6_with(
            dst, option(14), make=UDP(sport=client_port(), dport=53) / Raw(pattern(392))
        )
        flow, frames = flow_of(packet), list(map(eth, cut(packet, [(0, 160), (160, None)])))
        case(
            "fragments-6: extensions behind the fragment header",
            config,
            *train(world, dns, flow, frames),
        )
        flow, frames = flow_of(packet), list(map(eth, cut(packet, [(0, 160), (160, None)])))
        case(
            "fragments-6: extensions behind the fragment header, reversed",
            config,
            *train(world, dns, flow, frames[::-1], first=1),
            order=[1, 0],
        )
        # RFC 7112: the first fragment has to have the whole header chain.
        frames = list(map(eth, cut(packet, [(0, 16), (16, None)])))
        case(
            "fragments-6: the header chain goes on in the second",
            config,
            drop("fragment_tiny", frames[0]),
            drop(later, frames[1]),
            bad=True,
        )
        frames = list(map(eth, cut(packet, [(0, 8), (8, None)])))
        case(
            "fragments-6: an extension is cut",
            config,
            drop(["fragment_tiny", "truncated"], frames[0]),
            drop(later, frames[1]),
            bad=True,
        )
    else:
        packet = (
            ip(CLIENT[4], dst, 17, flags=0, options=[IPOption_NOP()] * 4)
            / UDP(sport=client_port(), dport=53)
            / Raw(pattern(392))
        )
        flow, frames = parts([(0, 160), (160, None)], packet)
        case(
            "fragments-4: options",
            config,
            *train(world, dns, flow, frames[::-1], first=1),
            order=[1, 0],
        )
        flow, frames = parts([(0, 160), (160, None)])
        frames = [frame + b"\xee" * 9 for frame in frames]
        case(
            "fragments-4: padding",
            config,
            *train(world, dns, flow, frames[::-1], first=1),
            order=[1, 0],
        )

for fam in FAMILIES:
    dst = V4 if fam == 4 else V6
    host = "10.70.0.1" if fam == 4 else "fd70::1"
    for what, dport, service_name in (
        ("exact", 8050, "in-range"),
        ("prefix", 443, "net-https"),
        ("any", 9999, "any-port"),
    ):
        packet = datagram(host, pattern(200), dport, make=tcp)
        first, last = map(eth, cut(packet, [(0, 104), (104, None)]))
        steps = train(MATCHED, f"{service_name}-{fam}", flow_of(packet), [last, first], first=1)
        # The first fragment decides: the address alone might lead the other elsewhere.
        case(f"match-{fam}: fragments, {what} port", MATCH, *steps, order=[1, 0])
