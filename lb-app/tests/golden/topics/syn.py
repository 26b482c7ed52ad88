"""Bounds on new connections: challenges, and what is let in."""

from kit import *

WORLD = Translator(SYN)
NEXT = itertools.count(1)


def new_client(fam):
    """Nobody who was let in before; of IPv6 another /64."""
    number = next(NEXT)
    address = f"198.18.{number >> 8}.{number & 255}" if fam == 4 else f"2001:db8:1:{number:x}::7"
    return address, client_port()


def segment(client, vip, tcp_flags, seq=99, options=(), data=b"", **header):
    """What a client sends to a service."""
    ack = 1 if "A" in tcp_flags else 0
    l4 = TCP(sport=client[1], dport=vip[1], flags=tcp_flags, seq=seq, ack=ack)
    l4.options = list(options)
    return ip(client[0], vip[0], TCP_PROTO, **header) / l4 / Raw(data)


def number(dotted):
    """Open bytes of four, as a number."""
    return struct.unpack("!I", ipaddress.ip_address(dotted).packed)[0]


def challenged(name, frame, cookie="C1"):
    """A SYN's frame is answered, in front of whatever it is in."""

    def answer(**open_bytes):
        packet = ip_packet(frame)
        layer = IP if packet[0] >> 4 == 4 else IPv6
        syn = layer(packet)
        head = ip(syn.dst, syn.src, hops=64, ident=0)
        l4 = TCP(sport=syn[TCP].dport, dport=syn[TCP].sport, flags="A", seq=0, window=0)
        l4.ack = number(open_bytes[cookie])
        ours = bytes.fromhex(OUR_MAC.replace(":", ""))
        return frame[6:12] + ours + frame[12 : l3_offset(frame)] + bytes(head / l4)

    return Step(frame, ("answer", "syn_limit", name), [opened(answer, **{cookie: 4})])


def met(name, client, vip, cookie="C1", tags=(), verdict=("drop", "challenge_met")):
    """The reset of a client that has got the answer (RFC 9293 3.10.7.3), without a window."""

    def reset(**open_bytes):
        packet = segment(client, vip, "R", seq=number(open_bytes[cookie]))
        packet[TCP].window = 0
        return eth(packet, tags)

    return Step(opened(reset, **{cookie: 4}), (*verdict, name), [])


def pass_by(name, packet, tags=(), number=1):
    """To the backend, whatever the mode is."""
    if "nat" in SYN.service(name)["forward"]:
        pool = SYN.service(name).get("pool")
        return WORLD.forth(name, packet, tags, stand=Stand(pool, number) if pool else None)
    return World(SYN).send(name, eth(packet, tags), flow_of(packet))


def filler(name, fam, vip):
    """There is room for this one in a second."""
    return pass_by(name, segment(new_client(fam), vip, "S"), number=9)


NAMES = [svc["name"] for svc in SYN.services if not svc["name"].startswith("drop")]
for name in NAMES:
    service = SYN.service(name)
    fam = family(service["address"])
    vip_of = (service["address"], 80)

    client = new_client(fam)
    syn = segment(client, vip_of, "S", options=[("MSS", 1460), ("SAckOK", b"")])
    steps = [
        filler(name, fam, vip_of),
        challenged(name, eth(syn)),
        challenged(name, eth(syn)),  # sent again
        met(name, client, vip_of),
        met(name, client, vip_of),  # to the second answer
        pass_by(name, syn),
        pass_by(name, segment(client, vip_of, "A", seq=100)),
    ]
    other = (client[0], client_port())
    steps.append(pass_by(name, segment(other, vip_of, "S"), number=2))
    stranger = new_client(fam)
    steps.append(challenged(name, eth(segment(stranger, vip_of, "S")), "C2"))
    case(f"{name}: who answers a challenge is let in", SYN, *steps, rewrites=True)

for fam in FAMILIES:
    name = f"syn-l2dsr-{fam}"
    vip_of = (SYN.service(name)["address"], 80)

    for what, tags in (("a VLAN", [7]), ("QinQ", [Dot1AD(vlan=7), 8])):
        client = new_client(fam)
        syn = segment(client, vip_of, "S")
        case(
            f"{name}: a challenge in {what}",
            SYN,
            filler(name, fam, vip_of),
            challenged(name, eth(syn, tags)),
            met(name, client, vip_of, tags=tags),
            pass_by(name, syn, tags),
        )

    # The answer is a plain segment, however the SYN was.
    many = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (7, 0)), ("NOP", None), ("WScale", 7)]
    for what, packet in (
        ("many options", segment(new_client(fam), vip_of, "S", options=many)),
        ("data", segment(new_client(fam), vip_of, "S", data=pattern(900))),
        ("ECN", segment(new_client(fam), vip_of, "SEC")),
        ("a FIN", segment(new_client(fam), vip_of, "SF")),
        ("DSCP", segment(new_client(fam), vip_of, "S", tos=0xB8)),
        ("one hop left", segment(new_client(fam), vip_of, "S", hops=1)),
    ):
        steps = filler(name, fam, vip_of), challenged(name, eth(packet))
        case(f"{name}: a challenge to a SYN with {what}", SYN, *steps)
    packet = segment(new_client(fam), vip_of, "S")
    steps = filler(name, fam, vip_of), challenged(name, eth(packet, pad=bytes(6)))
    case(f"{name}: a challenge to a SYN with padding", SYN, *steps)
    if fam == 4:
        packet = segment(new_client(4), vip_of, "S", options=many)
        packet[IP].options = [IPOption_NOP()] * 12
        del packet[IP].ihl
    else:
        l4 = segment(new_client(6), vip_of, "S")
        packet = ip(l4[IPv6].src, vip_of[0]) / HOP_BY_HOP / option() / l4[TCP]
    steps = filler(name, fam, vip_of), challenged(name, eth(packet))
    case(f"{name}: a challenge to a SYN behind options", SYN, *steps)

    # All but SYNs go past.
    for tcp_flags in ("SA", "A", "PA", "FA", "R", "RA", "SR", ""):
        packet = segment(new_client(fam), vip_of, tcp_flags)
        steps = filler(name, fam, vip_of), pass_by(name, packet)
        case(f"{name}: above the rate, flags {tcp_flags or 'none'}", SYN, *steps)

    # Resets of other numbers are what they seem to be, and nobody is let in for them.
    client = new_client(fam)
    syn = segment(client, vip_of, "S")
    steps = [filler(name, fam, vip_of), challenged(name, eth(syn))]
    steps += [pass_by(name, segment(client, vip_of, "R", seq=seq)) for seq in (0, 99, 100)]
    case(f"{name}: a reset of another number", SYN, *steps, challenged(name, eth(syn)))

    # A part of a packet is not answered.
    packet = segment(new_client(fam), vip_of, "S", data=pattern(100))
    if fam == 4:
        packet.flags = 0
    first, _ = cut(packet, [(0, 64), (64, None)])
    steps = filler(name, fam, vip_of), drop("syn_limit", eth(first), service=name)
    case(f"{name}: a SYN in pieces", SYN, *steps)

    # Nor is whoever is not one station.
    packet = segment(new_client(fam), vip_of, "S")
    frame = eth(packet, src="01:00:5e:00:00:01")
    steps = filler(name, fam, vip_of), drop("syn_limit", frame, service=name)
    case(f"{name}: a SYN from a group", SYN, *steps)

    # There is room again after a second; and there was not a millisecond before.
    steps = [
        pass_by(name, segment(new_client(fam), vip_of, "S")),
        challenged(name, eth(segment(new_client(fam), vip_of, "S"))),
        pass_by(name, segment(new_client(fam), vip_of, "S")),
        challenged(name, eth(segment(new_client(fam), vip_of, "S")), "C2"),
    ]
    for step, at in zip(steps, (0.0, 0.999, 1.0, 1.5)):
        step.at = at
    case(f"{name}: one a second", SYN, *steps)

    name = f"drop-l2dsr-{fam}"
    vip_of = (SYN.service(name)["address"], 80)
    syn = eth(segment(new_client(fam), vip_of, "S"))
    steps = filler(name, fam, vip_of), drop("syn_limit", syn, service=name)
    case(f"{name}: above the rate", SYN, *steps)

    # All but TCP's packets go past; TCP's to all ports have one bound.
    name = f"client-l2dsr-{fam}"
    vip_of = (SYN.service(name)["address"], 443)
    datagram = udp(vip_of[0], 443)
    steps = filler(name, fam, vip_of), pass_by(name, datagram), pass_by(name, datagram)
    case(f"{name}: datagrams", SYN, *steps)
    other = (vip_of[0], 8443)
    steps = filler(name, fam, vip_of), challenged(name, eth(segment(new_client(fam), other, "S")))
    case(f"{name}: another port", SYN, *steps)
