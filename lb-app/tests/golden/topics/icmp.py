"""ICMP errors."""

from kit import *

for way, inner, name in per_way():
    world = World(MODES[way[0]])
    config, dst = world.config, vip(10, way, inner)
    web, dns, log = f"web-{name}", f"dns-{name}", f"log-{name}"

    def follows(what, kind, packet, flow, tags=(), pad=b"", world=world, **flags):
        case(
            f"{name}: ICMP, {what}",
            world.config,
            world.send(kind, eth(packet, tags, pad), flow, rule="icmp_error"),
            **flags,
        )

    for what, icmp in ERRORS[inner]:
        quote, flow = error_quote(dst, inner)
        follows(what, web, error(dst, icmp, quote), flow)
    needed = NEEDED[inner]
    quote, flow = error_quote(dst, inner, 53, proto=UDP_PROTO)
    follows("UDP quoted", dns, error(dst, needed, quote), flow)
    quote, flow = error_quote(dst, inner, 514, proto=UDP_PROTO)
    follows("one client", log, error(dst, needed, quote), flow)
    quote, flow = error_quote(dst, inner, l4_bytes=84)
    follows("much quoted, in a VLAN", web, error(dst, needed, quote), flow, tags=[7])
    quote, flow = error_quote(dst, inner)
    follows(
        "QinQ and padding",
        web,
        error(dst, needed, quote, tos=0xC0),
        flow,
        tags=[Dot1AD(vlan=3), 4],
        pad=b"\x99" * 5,
    )
    # An error follows its flow: what is said of both is the same.
    packet = tcp(dst)
    quote, _ = error_quote(dst, inner, dport=packet[TCP].sport)
    flow = flow_of(packet)
    case(
        f"{name}: ICMP, after its flow",
        config,
        world.send(web, eth(packet), flow),
        world.send(web, eth(error(dst, needed, quote)), flow, rule="icmp_error"),
    )
    if inner == 4:
        quote, flow = error_quote(dst, 4, options=[IPOption_NOP()] * 8)
        follows("options in the quote", web, error(dst, needed, quote), flow)
        quote, flow = error_quote(dst, 4)
        options = ip(ROUTER[4], dst, 1, options=[IPOption_NOP()] * 4) / needed.copy() / Raw(quote)
        follows("options before it", web, options, flow)
    else:
        dport = client_port()
        l4 = TCP(sport=80, dport=dport, flags="A")
        flow = Flow(CLIENT[6], dst, dport, 80, 6)
        quoted = ip(dst, CLIENT[6]) / HOP_BY_HOP / option() / l4
        follows(
            "extensions in the quote", web, error(dst, needed, bytes(quoted)[: 40 + 16 + 8]), flow
        )
        before = (
            ip(ROUTER[6], dst) / HOP_BY_HOP / needed.copy() / Raw(bytes(ip(dst, CLIENT[6], 6) / l4))
        )
        follows("extensions before it", web, before, flow)
    # A first fragment has the ports.
    part = dict(flags="MF") if inner == 4 else {}
    if inner == 4:
        quote, flow = error_quote(dst, 4, **part)
    else:
        _, flow = error_quote(dst, 6)
        l4 = bytes(TCP(sport=80, dport=flow.sport))[:8]
        quote = bytes(ip(dst, CLIENT[6]) / IPv6ExtHdrFragment(nh=6, offset=0, m=1, id=9) / Raw(l4))
    follows("a first fragment quoted", web, error(dst, needed, quote), flow)
    world = World(ANY)
    quote, flow = error_quote(vip(20, way, inner), inner, 5060, proto=SCTP_PROTO)
    follows("SCTP quoted", f"sctp-{name}", error(flow.dst, needed, quote), flow, world=world)
    quote, flow = error_quote(vip(21, way, inner), inner, 5060, proto=UDP_PROTO)
    follows(
        "UDP of any protocol quoted",
        f"any-{name}",
        error(flow.dst, needed, quote),
        flow,
        world=world,
    )
    esp = bytes(ESP(spi=1, seq=1, data=bytes(32)))
    quote, _ = error_quote(vip(21, way, inner), inner, proto=50, l4=esp)
    flow = Flow(CLIENT[inner], vip(21, way, inner), 0, 0, 50)
    follows("ESP quoted", f"any-{name}", error(flow.dst, needed, quote), flow, world=world)
    quote, flow = error_quote(vip(22, way, inner), inner, 9, proto=UDP_PROTO)
    follows("any port quoted", f"sticky-{name}", error(flow.dst, needed, quote), flow, world=world)

for fam, dst in ((4, V4), (6, V6)):
    proto, needed = (1, NEEDED[4]) if fam == 4 else (58, NEEDED[6])

    def punted(what, *packets, **flags):
        case(f"icmp-{fam}: {what}", WEB, *(punt(eth(packet)) for packet in packets), **flags)

    nobody = "10.0.0.2" if fam == 4 else "fd00::2"
    quote = lambda *more, **kw: error_quote(*(more or (dst, fam)), **kw)[0]
    punted(
        "a quote that matches no port",
        error(dst, needed, quote(sport=81)),
        error(dst, needed, quote(sport=53)),
    )
    punted("a quote that matches no address", error(nobody, needed, quote(nobody, fam)))
    punted(
        "sent to another than the quote's source",
        error(nobody, needed, quote()),
        error(dst, needed, quote(nobody, fam)),
    )
    punted(
        "no ports in the quote",
        *(error(dst, needed, quote(l4_bytes=n)) for n in (0, 1, 3)),
        bad=True,
    )
    punted(
        "header cut short in the quote",
        error(dst, needed, quote()[:19]),
        error(dst, needed, quote()[:1]),
        error(dst, needed, b""),
        bad=True,
    )
    bad_version = bytes([0x55 if fam == 4 else 0x50]) + quote()[1:]
    punted("the quote's version is bad", error(dst, needed, bad_version), bad=True)
    other_family = 10 - fam
    punted(
        "the other family quoted",
        error(dst, needed, quote(V6 if fam == 4 else V4, other_family)),
        bad=True,
    )
    punted("the client's direction quoted", error(dst, needed, bytes(tcp(dst))[: len(quote())]))
    if fam == 4:
        piece = bytes(ip(V4, CLIENT[4], 6, flags=0) / Raw(bytes(TCP(sport=80, dport=40_000))[:8]))
        later_quote = fixed_header(piece, flags=100)
        punted("a later fragment quoted", error(V4, needed, later_quote))
        punted("IHL 4 in the quote", error(V4, needed, b"\x44" + quote()[1:]), bad=True)
        punted(
            "options cut short in the quote",
            error(V4, needed, quote(options=[IPOption_NOP()] * 40)[:50]),
            bad=True,
        )
        echo_reply = bytes(ip(V4, CLIENT[4], 1) / ICMP(type=0, id=3))
        punted("an echo reply quoted", error(V4, needed, echo_reply))
        for kind in (0, 4, 5, 8, 13, 17):
            icmp = ICMP(type=kind)
            if kind == 13:  # scapy would take the time of day
                icmp.ts_ori = icmp.ts_rx = icmp.ts_tx = 0x02D2BE4F
            punted(f"type {kind}", ip(ROUTER[4], V4, 1) / icmp / Raw(quote()), bad=True)
        short = ip(ROUTER[4], V4, 1) / Raw(bytes([3, 4, 0, 0, 0]))
        punted("header of ICMP cut short", short, bad=True)
        q, flow = error_quote(V4, 4)
        bad_sum = error(V4, needed, q)
        bad_sum[ICMP].chksum = 0x1234
    else:
        part = IPv6ExtHdrFragment(nh=6, offset=100, m=1, id=9)
        later_quote = ip(V6, CLIENT[6]) / part / Raw(bytes(TCP(sport=80, dport=40_000))[:8])
        punted("a later fragment quoted", error(V6, needed, bytes(later_quote)))
        many = ip(V6, CLIENT[6])
        for _ in range(9):
            many = many / option()
        punted(
            "nine extensions in the quote", error(V6, needed, bytes(many / TCP(sport=80, dport=1)))
        )
        cut_short = bytes(ip(V6, CLIENT[6]) / option(14) / TCP(sport=80, dport=1))[:50]
        punted("an extension cut short in the quote", error(V6, needed, cut_short), bad=True)
        echo_reply = bytes(ip(V6, CLIENT[6], 58) / Raw(bytes([129, 0, 0, 0, 0, 3, 0, 1])))
        punted("an echo reply quoted", error(V6, needed, echo_reply))
        for kind in (0, 5, 100, 127, 129, 137):
            punted(
                f"type {kind}",
                ip(ROUTER[6], V6, 58) / Raw(bytes([kind]) + bytes(7) + quote()),
                bad=True,
            )
        short = ip(ROUTER[6], V6, 58) / Raw(bytes([2, 0, 0, 0, 0]))
        punted("header of ICMPv6 cut short", short, bad=True)
        q, flow = error_quote(V6, 6)
        bad_sum = error(V6, needed, q)
        bad_sum[ICMPv6PacketTooBig].cksum = 0x1234
    case(
        f"icmp-{fam}: a wrong checksum is not looked at",
        WEB,
        PLAIN.send(f"web-l2dsr-{fam}", eth(bad_sum), flow, rule="icmp_error"),
        bad=True,
    )
    host = "10.70.0.1" if fam == 4 else "fd70::1"
    for sport, service_name in ((8050, "in-range"), (443, "net-https"), (9999, "any-port")):
        q, flow = error_quote(host, fam, sport)
        frame = eth(error(host, needed, q))
        case(
            f"icmp-{fam}: quoted port {sport}, {service_name}",
            MATCH,
            MATCHED.send(f"{service_name}-{fam}", frame, flow, rule="icmp_error"),
        )
    q, flow = error_quote(host, fam, 81, proto=UDP_PROTO)
    case(
        f"icmp-{fam}: quoted, any protocol",
        MATCH,
        MATCHED.send(f"any-protocol-{fam}", eth(error(host, needed, q)), flow, rule="icmp_error"),
    )
    case(
        f"icmp-{fam}: bad source",
        WEB,
        drop(
            "bad_source",
            eth(ip("127.0.0.1" if fam == 4 else "::1", dst, proto) / needed.copy() / Raw(quote())),
        ),
    )
    # RFC 4884: what is appended to the quote goes along.
    if fam == 4:
        q, flow = error_quote(V4, 4, l4_bytes=84)
        q = q.ljust(128, b"\0") + bytes.fromhex("2000 dead 0008 0101 00010141".replace(" ", ""))
        extended = ip(ROUTER[4], V4, 1) / ICMP(type=11, code=0, length=32) / Raw(q)
        case(
            "icmp-4: extensions behind the quote",
            WEB,
            PLAIN.send("web-l2dsr-4", eth(extended), flow, rule="icmp_error"),
            bad=True,
        )
