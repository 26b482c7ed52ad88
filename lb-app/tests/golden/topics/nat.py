"""nat: to the backend, and back."""

from kit import *

WORLD = Translator(NAT)


def ends(fam):
    """A client of its own for each case."""
    return CLIENT[fam], client_port()


def answering(name, fam, layer=TCP, data=b"answer", l4=None, **header):
    """A function that makes the packet of the service's backend to (address, port)."""
    src = WORLD.backend(name)
    l4 = l4 or (TCP(flags="SA", seq=7, ack=2) if layer is TCP else layer()) / Raw(data)
    return lambda end: told(src, end, l4, **header)


for fam in FAMILIES:
    dst = own_vip(80, fam, fam)

    def forth(what, kind, packet, tags=(), pad=b"", **flags):
        """A client's packet, which comes to the backend."""
        step = WORLD.forth(f"{kind}-{fam}", packet, tags, pad)
        case(f"nat-{fam}: {what}", NAT, step, rewrites=True, **flags)

    def back(what, kind, layer=TCP, tags=(), udp=False, l4=None, change=None, **header):
        """An answer of the backend, which comes to the client."""
        make = answering(f"{kind}-{fam}", fam, layer, l4=l4, **header)
        step = WORLD.back(f"{kind}-{fam}", ends(fam), make, tags, udp=udp, change=change)
        case(f"nat-{fam}: {what}", NAT, step, rewrites=True)

    forth("TCP", "web", tcp(dst))
    forth("TCP, SYN", "web", tcp(dst, tcp_flags="S", tcp_options=[("MSS", 1460)], data=b""))
    forth("TCP, RST", "web", tcp(dst, tcp_flags="R", data=b""))
    forth("UDP", "dns", udp(dst))
    forth("UDP without data", "dns", udp(dst, data=b""))
    forth("an odd payload", "dns", udp(dst, data=pattern(1001)))
    forth("the port stays", "same", tcp(dst, 81))
    forth("SCTP", "sctp", sctp(dst))
    forth("any protocol", "any", other(own_vip(81, fam, fam), 253))
    forth("any port", "any", tcp(own_vip(81, fam, fam), 7777))
    forth("source port 0", "dns", udp(dst, sport=0))
    forth("TTL 2", "web", tcp(dst, hops=2))
    forth("TTL 255", "web", tcp(dst, hops=255))
    forth("DSCP and ECN", "web", tcp(dst, tos=0xBB))
    forth("a VLAN", "web", tcp(dst), tags=[7])
    forth("QinQ", "dns", udp(dst), tags=[Dot1AD(vlan=7), 8])
    forth("padding", "dns", udp(dst, data=b"q"), pad=b"\xaa" * 18)
    forth("the most that fits", "web", sized(tcp, dst, 1500))
    # A checksum of 0 says that there is none (RFC 768); one that would be 0 is 0xffff.
    for sum_to in (0, 1, 0xFFFF):
        probe = udp(dst, data=b"\0\0")
        result = translated(probe, None, WORLD.backend(f"dns-{fam}"))
        seen = struct.unpack_from(
            "!H", bytes(segment_of(header_of(result).__class__(bytes(result)))), 6
        )[0]
        probe[UDP].payload = Raw(struct.pack("!H", (seen - sum_to) % 0xFFFF))
        forth(f"UDP checksum of 0 to come, {sum_to}", "dns", probe)
    if fam == 4:
        zero = udp(dst)
        zero[UDP].chksum = 0
        forth("no UDP checksum", "dns", zero)
        forth("options", "web", tcp(dst, options=[IPOption_RR(routers=["0.0.0.0"] * 3)]))
        forth("DF not set", "web", tcp(dst, flags=0, ident=7))
    else:
        forth("a flow label", "web", tcp(dst, label=0xABCDE))
        forth("extensions", "web", v6_with(dst, HOP_BY_HOP, ROUTING, option()))
        atomic = v6_with(dst, IPv6ExtHdrFragment(id=77, m=0, offset=0))
        forth("an atomic fragment", "web", atomic)
    packet = tcp(dst, 82, tcp_flags="S", tcp_options=[("MSS", 1460)], data=b"")

    def clamped(packet):
        packet[TCP].options = [("MSS", 1300)]
        return packet

    step = WORLD.forth(f"mss-{fam}", packet, change=clamped)
    case(f"nat-{fam}: MSS", NAT, step, rewrites=True)

    back("answer, TCP", "web")
    back("answer, UDP", "dns", UDP, udp=True)
    back("answer, SCTP", "sctp", l4=SCTP(tag=7) / SCTPChunkData(data=b"weir", tsn=1))
    back("answer, the port stays", "same")
    back("answer, TTL 2", "web", hops=2)
    back("answer, DSCP in a VLAN", "web", tos=0xB8, tags=[7])
    syn_ack = TCP(flags="SA", options=[("MSS", 1460)])
    back("answer, MSS", "mss", l4=syn_ack, change=clamped)
    # The same port of another station, and another port of the backend: nobody's answers.
    web = WORLD.backend(f"web-{fam}")
    stranger = told((server(fam, 99), web[1]), ends(fam), TCP(flags="SA"))
    other_port = told((web[0], web[1] + 1), ends(fam), TCP(flags="SA"))
    other_protocol = told(web, ends(fam), UDP())
    case(
        f"nat-{fam}: no answers of the service",
        NAT,
        *(punt(eth(packet)) for packet in (stranger, other_port, other_protocol)),
    )

    # TTL.
    steps = [WORLD.told_expired(f"web-{fam}", eth(tcp(dst, hops=hops))) for hops in (1, 0)]
    case(f"nat-{fam}: TTL 1 and 0", NAT, *steps)
    step = WORLD.told_expired(f"dns-{fam}", eth(sized(udp, dst, 1400, hops=1), [7], b"\xaa" * 3))
    case(f"nat-{fam}: TTL 1, a large packet in a VLAN", NAT, step)
    make = answering(f"web-{fam}", fam, hops=1)
    case(f"nat-{fam}: answer, TTL 1", NAT, WORLD.told_back(f"web-{fam}", ends(fam), make))
    packet = tcp(dst, 82, tcp_flags="S", tcp_options=[("MSS", 1460)], data=b"", hops=1)
    case(f"nat-{fam}: TTL 1 of a SYN", NAT, WORLD.told_expired(f"mss-{fam}", eth(packet)))
    packet = error(dst, NEEDED[fam], error_quote(dst, fam)[0], hops=1)
    case(f"nat-{fam}: TTL 1 of an error", NAT, drop("ttl_exceeded", eth(packet)))

    # Too big.
    step = WORLD.told_too_big(f"web-{fam}", eth(sized(tcp, dst, 1501)), 1500)
    case(f"nat-{fam}: too big", NAT, step)
    make = answering(f"web-{fam}", fam, data=pattern(1490))
    step = WORLD.told_back(f"web-{fam}", ends(fam), make, mtu=1500)
    case(f"nat-{fam}: answer, too big", NAT, step)

    if fam == 4:
        packet = sized(udp, dst, 2000, flags=0)
        case("nat-4: too big without DF", NAT, WORLD.cut_forth("dns-4", packet), rewrites=True)
        step = WORLD.cut_forth("dns-4", sized(udp, dst, 2000, flags=0), pad=b"\xaa" * 7)
        case("nat-4: too big without DF, padded", NAT, step, rewrites=True)
        make = answering("dns-4", 4, UDP, data=pattern(3100), flags=0)
        step = WORLD.cut_back("dns-4", ends(4), make, udp=True)
        case("nat-4: answer, too big without DF", NAT, step, rewrites=True)
        packet = tcp(dst, data=pattern(2000), flags=0, options=[IPOption_NOP()] * 4)
        step = drop("too_big", eth(packet))
        case("nat-4: too big without DF, with options", NAT, step)

    # Fragments.
    for what, order, leave in (
        ("in order", (0, 1, 2), None),
        ("shuffled", (1, 0, 2), [1, 0, 2]),
    ):
        ranges = [(0, 160), (160, 320), (320, None)]
        packet = datagram(dst, pattern(392))
        steps = WORLD.pieces_forth(f"dns-{fam}", packet, ranges, order)
        case(f"nat-{fam}: fragments {what}", NAT, *steps, order=leave, rewrites=True)
        header = {"flags": 0} if fam == 4 else {}
        make = answering(f"dns-{fam}", fam, UDP, data=pattern(392), **header)
        steps = WORLD.pieces_back(f"dns-{fam}", ends(fam), make, ranges, order, udp=True)
        case(f"nat-{fam}: answer in fragments {what}", NAT, *steps, order=leave, rewrites=True)

    # ICMP errors.
    for what, icmp in ERRORS[fam]:
        for layer, kind, l4 in (
            ("TCP", "web", TCP() / Raw(pattern(64))),
            ("UDP", "dns", UDP() / Raw(pattern(64))),
        ):
            for length in (8, 72):
                client = ends(fam)
                step = WORLD.error_forth(f"{kind}-{fam}", client, icmp, l4, length)
                name = f"nat-{fam}: ICMP, {what}, {layer}, {length} bytes quoted"
                case(name, NAT, step, rewrites=True)
                step = WORLD.error_back(f"{kind}-{fam}", client, icmp, l4, length)
                case(f"{name}, of the backend's side", NAT, step, rewrites=True)
    client = ends(fam)
    step = WORLD.error_forth(
        f"web-{fam}", client, ERRORS[fam][2][1], TCP() / Raw(b"12345678"), 28, src=client[0]
    )
    case(f"nat-{fam}: ICMP of the client itself", NAT, step, rewrites=True)
    step = WORLD.error_back(
        f"web-{fam}",
        client,
        ERRORS[fam][2][1],
        TCP() / Raw(b"12345678"),
        28,
        src=WORLD.backend(f"web-{fam}")[0],
    )
    case(f"nat-{fam}: ICMP of the backend itself", NAT, step, rewrites=True)
    step = WORLD.error_forth(
        f"sctp-{fam}", ends(fam), NEEDED[fam], SCTP(tag=7) / Raw(bytes(16)), 12
    )
    case(f"nat-{fam}: ICMP, SCTP quoted", NAT, step, rewrites=True)
    if fam == 6:
        # The quoted ports lie far behind, and the checksum covers them all the same.
        client = ends(fam)
        long = [option(126), option(126), option(126)]
        for back_side in (False, True):
            far = WORLD.backend("web-6") if back_side else WORLD.vip("web-6")
            src, dst_end = (client, far) if back_side else (far, client)
            l4 = TCP(sport=src[1], dport=dst_end[1]) / Raw(pattern(40))
            sent = ip(src[0], dst_end[0])
            for extension in long:
                sent = sent / extension
            sent = sent / l4
            to = client if back_side else WORLD.backend("web-6")
            result = translated(
                sent,
                client if back_side else to,
                WORLD.vip("web-6") if back_side else client,
                keep_hops=True,
            )
            frame = eth(error(src[0], NEEDED[6], bytes(sent)))
            out = eth(
                error(to[0], NEEDED[6], bytes(result), hops=59),
                dst=CLIENT_MAC if back_side else WORLD.mac("web-6"),
                src=OUR_MAC,
            )
            if back_side:
                step = WORLD.returned("web-6", frame, [Out(out)])
            else:
                flow = Flow(client[0], far[0], client[1], far[1], 6)
                step = WORLD.sent("web-6", "icmp_error", frame, [Out(out)], flow)
            case(f"nat-6: ICMP, long extensions quoted, {back_side}", NAT, step, rewrites=True)
