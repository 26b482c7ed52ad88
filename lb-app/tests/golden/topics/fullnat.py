"""fullnat: connections of a pool, within families and between them."""

from kit import *

WORLD = Translator(FULLNAT)


def ends(fam):
    """A client of its own for each case."""
    return CLIENT[fam], client_port()


def segment(client, name, tcp_flags, seq, ack, data=b"", options=(), **header):
    """What the client sends to the service."""
    l4 = TCP(flags=tcp_flags, seq=seq, ack=ack, options=list(options)) / Raw(data)
    return told(client, WORLD.vip(name), l4, **header)


def answer(name, tcp_flags, seq, ack, data=b"", options=(), **header):
    """A function that makes what the backend sends to (address, port)."""
    l4 = TCP(flags=tcp_flags, seq=seq, ack=ack, options=list(options)) / Raw(data)
    return lambda end: told(WORLD.backend(name), end, l4, **header)


def datagram_of(name, data=b"answer", **header):
    return lambda end: told(WORLD.backend(name), end, UDP() / Raw(data), **header)


for fam, back in PAIRS:
    pair = f"{fam}{back}"
    web, dns = f"web-{pair}", f"dns-{pair}"
    dst = own_vip(82, fam, back)

    def forth(what, name, packet, tags=(), pad=b"", **more):
        """A client's packet, which comes to the backend."""
        step = WORLD.forth(name, packet, tags, pad, **more)
        case(f"fullnat-{pair}: {what}", FULLNAT, step, rewrites=True)

    # A connection, from beginning to end: one port throughout.
    client = ends(fam)
    mss = [("MSS", 1220)]
    steps = [
        WORLD.forth(web, segment(client, web, "S", 99, 0, options=mss)),
        WORLD.back(web, client, answer(web, "SA", 499, 100, options=mss)),
        WORLD.forth(web, segment(client, web, "A", 100, 500)),
        WORLD.forth(web, segment(client, web, "PA", 100, 500, b"a request")),
        WORLD.back(web, client, answer(web, "A", 500, 109)),
        WORLD.back(web, client, answer(web, "PA", 500, 109, pattern(701))),
        WORLD.forth(web, segment(client, web, "FA", 109, 1201)),
        WORLD.back(web, client, answer(web, "FA", 1201, 110)),
        WORLD.forth(web, segment(client, web, "A", 110, 1202)),
    ]
    case(f"fullnat-{pair}: a connection", FULLNAT, *steps, rewrites=True)

    if fam == back:
        # The server answers for nat as well, at the same port.
        client, name = ends(fam), f"nat-{fam}"
        step = WORLD.back(name, client, answer(name, "SA", 1, 2))
        case(f"fullnat-{pair}: an answer of nat by the same server", FULLNAT, step, rewrites=True)

    # Two of one client, and one of another: three ports.
    clients = [ends(fam), ends(fam), ("198.51.100.8" if fam == 4 else "2001:db8::8", 40_000)]
    stands = [WORLD.stand(web, n) for n in (1, 2, 3)]
    both = list(zip(clients, stands))
    steps = [WORLD.forth(web, segment(c, web, "S", 1, 0), stand=s) for c, s in both]
    steps += [WORLD.back(web, c, answer(web, "SA", 1, 2), stand=s) for c, s in both[::-1]]
    steps += [WORLD.forth(web, segment(c, web, "A", 2, 2), stand=s) for c, s in both]
    case(f"fullnat-{pair}: three connections", FULLNAT, *steps, rewrites=True)

    # The same client's same port to two services of one pool: two ports of it.
    client = ends(fam)
    mss_name = f"mss-{pair}"
    steps = [
        WORLD.forth(web, segment(client, web, "S", 1, 0)),
        WORLD.forth(mss_name, segment(client, mss_name, "S", 1, 0), stand=WORLD.stand(web, 2)),
    ]
    case(f"fullnat-{pair}: one client of two services", FULLNAT, *steps, rewrites=True)

    # UDP, and a pool of several addresses.
    client, other_client = ends(fam), ends(fam)
    query = lambda client, data=b"query": told(client, WORLD.vip(dns), UDP() / Raw(data))
    stands = [WORLD.stand(dns, n) for n in (1, 2)]
    steps = [
        WORLD.forth(dns, query(client), stand=stands[0]),
        WORLD.forth(dns, query(other_client), stand=stands[1]),
        WORLD.back(dns, client, datagram_of(dns), stand=stands[0], udp=True),
        WORLD.back(dns, other_client, datagram_of(dns, b""), stand=stands[1], udp=True),
        WORLD.forth(dns, query(client, pattern(1001)), stand=stands[0]),
    ]
    case(f"fullnat-{pair}: two flows of UDP", FULLNAT, *steps, rewrites=True, pool=POOL[back])

    # Headers.
    tcp_to = lambda **more: tcp(dst, **more)
    forth("TTL 2", web, tcp_to(hops=2))
    forth("TTL 255", web, tcp_to(hops=255))
    forth("DSCP and ECN", web, tcp_to(tos=0xBB))
    forth("a VLAN", web, tcp_to(), tags=[7])
    forth("QinQ", web, tcp_to(), tags=[Dot1AD(vlan=7), 8])
    forth("padding", web, tcp_to(data=b""), pad=b"\xaa" * 6)
    for length in (1259, 1260, 1261, 1279, 1280, 1281):
        forth(f"{length} bytes", web, sized(tcp, dst, length))
    if fam == 4:
        zero = udp(dst)
        zero[UDP].chksum = 0
        # Between families it has to have one (RFC 7915 4.5).
        case(
            f"fullnat-{pair}: no UDP checksum",
            FULLNAT,
            WORLD.forth(dns, zero),
            rewrites=True,
            pool=POOL[back],
        )
        forth("DF not set", web, tcp_to(flags=0, ident=7))
        forth("options", web, tcp_to(options=[IPOption_NOP()] * 8))
        if back == 6:
            packet = tcp_to(options=[IPOption_LSRR(routers=["10.1.1.1"])])
            # RFC 7915 4.1: not even read in the other family.
            step = drop("untranslatable", eth(packet))
            case(f"fullnat-{pair}: an unexpired source route", FULLNAT, step)
    else:
        forth("a flow label", web, tcp_to(label=0xABCDE))
        forth("extensions", web, v6_with(dst, HOP_BY_HOP, ROUTING, option()))
        if back == 4:
            routed = IPv6ExtHdrRouting(addresses=["fd99::1"], segleft=1)
            step = drop("untranslatable", eth(v6_with(dst, routed)))
            case(f"fullnat-{pair}: an unexpired route", FULLNAT, step)

    def lowered(packet):
        packet[TCP].options = [("MSS", 1300)]
        return packet

    packet = tcp(dst, 83, tcp_flags="S", tcp_options=[("MSS", 1460)], data=b"")
    forth("MSS", mss_name, packet, change=lowered)

    # What belongs to no connection.
    strange = told(WORLD.backend(web), (WORLD.stand(web).end({"P1": 2000})), TCP(flags="SA"))
    case(f"fullnat-{pair}: an answer to nobody", FULLNAT, punt(eth(strange)))
    client = ends(fam)
    stranger = server(back, 99), WORLD.backend(web)[1]
    to_pool = lambda end: eth(told(stranger, end, TCP(flags="SA")))
    as_udp = lambda end: eth(told(WORLD.backend(web), end, UDP()))
    steps = [
        WORLD.forth(web, segment(client, web, "S", 1, 0)),
        punt(WORLD.open(to_pool, WORLD.stand(web))),
        punt(WORLD.open(as_udp, WORLD.stand(web), udp=True)),
    ]
    case(f"fullnat-{pair}: others send to a connection's port", FULLNAT, *steps, rewrites=True)
    step = drop("no_connection", eth(tcp_to(tcp_flags="R", data=b"")))
    case(f"fullnat-{pair}: a reset of nothing", FULLNAT, step)
    quote, _ = error_quote(dst, fam)
    step = drop("no_connection", eth(error(dst, NEEDED[fam], quote)))
    case(f"fullnat-{pair}: an error about nothing", FULLNAT, step)

    # TTL.
    steps = [WORLD.told_expired(web, eth(tcp_to(hops=hops))) for hops in (1, 0)]
    case(f"fullnat-{pair}: TTL 1 and 0", FULLNAT, *steps)
    client = ends(fam)
    steps = [
        WORLD.forth(web, segment(client, web, "S", 1, 0)),
        WORLD.told_back(web, client, answer(web, "SA", 1, 2, hops=1)),
    ]
    case(f"fullnat-{pair}: answer, TTL 1", FULLNAT, *steps, rewrites=True)

    # Too big: the sender is told what fits as its own family counts.
    more = {4: {4: 0, 6: -20}, 6: {6: 0, 4: 20}}[fam][back]
    forth("the most that fits", web, sized(tcp, dst, 1500 + more))
    step = WORLD.told_too_big(web, eth(sized(tcp, dst, 1501 + more)), 1500 + more)
    case(f"fullnat-{pair}: too big", FULLNAT, step)
    client = ends(fam)
    large = lambda length: answer(web, "A", 1, 2, pattern(length - {4: 40, 6: 60}[back]))
    steps = [
        WORLD.forth(web, segment(client, web, "S", 1, 0)),
        WORLD.back(web, client, large(1500 - more)),
        WORLD.told_back(web, client, large(1501 - more), mtu=1500 - more),
    ]
    case(f"fullnat-{pair}: answer, too big", FULLNAT, *steps, rewrites=True)

    if fam == 4:
        for length in (1501 + more, 2000, 3100):
            step = WORLD.cut_forth(web, sized(tcp, dst, length, flags=0))
            name = f"fullnat-{pair}: too big without DF, {length} bytes"
            case(name, FULLNAT, step, rewrites=True)
    if back == 4:
        client = ends(fam)
        make = answer(web, "A", 1, 2, pattern(2000), flags=0)
        opening = WORLD.forth(web, segment(client, web, "S", 1, 0))
        steps = [opening, WORLD.cut_back(web, client, make)]
        case(f"fullnat-{pair}: answer, too big without DF", FULLNAT, *steps, rewrites=True)

    # Fragments.
    ranges = [(0, 160), (160, 320), (320, None)]
    for what, order, leave in (
        ("in order", (0, 1, 2), [0, 1, 2]),
        ("shuffled", (1, 0, 2), [1, 0, 2]),
    ):
        packet = datagram(dst, pattern(392))
        steps = WORLD.pieces_forth(dns, packet, ranges, order)
        case(
            f"fullnat-{pair}: fragments {what}",
            FULLNAT,
            *steps,
            order=leave,
            rewrites=True,
            pool=POOL[back],
        )
        client = ends(fam)
        make = datagram_of(dns, pattern(392), **({"flags": 0} if back == 4 else {}))
        steps = [WORLD.forth(dns, query(client))]
        steps += WORLD.pieces_back(dns, client, make, ranges, order, udp=True)
        case(
            f"fullnat-{pair}: answer in fragments {what}",
            FULLNAT,
            *steps,
            order=[0, *(place + 1 for place in leave)],
            rewrites=True,
            pool=POOL[back],
        )
    if (fam, back) == (4, 6):
        # Of a part nobody can tell the checksum that IPv6 has to have (RFC 7915 4.5).
        packet = datagram(dst, pattern(392))
        packet[UDP].chksum = 0
        first, later = map(eth, cut(packet, [(0, 160), (160, None)]))
        steps = [drop("untranslatable", first)]
        case(f"fullnat-{pair}: a first fragment without UDP checksum", FULLNAT, *steps)
