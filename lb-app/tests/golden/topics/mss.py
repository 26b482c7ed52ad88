"""The segment size in SYNs."""

from kit import *


def clamped(packet, limit):
    """The packet with its MSS lowered; scapy sums it up anew."""
    packet = packet.copy()
    packet[TCP].options = [
        (name, min(value, limit)) if name == "MSS" else (name, value)
        for name, value in packet[TCP].options
    ]
    return packet


for way, inner, name in per_way():
    world = World(MSS)
    for kind, net in (("number", 30), ("auto", 31)):
        svc = f"{kind}-{name}"
        limit = (
            1300
            if kind == "number"
            else 1500 - overhead(MSS.service(svc)) - (40 if inner == 4 else 60)
        )
        dst = vip(net, way, inner)
        for what, flags, options in (
            ("SYN", "S", [("MSS", 1460)]),
            ("SYN-ACK", "SA", [("MSS", 8960)]),
            (
                "many options",
                "S",
                [
                    ("MSS", 65_495),
                    ("SAckOK", b""),
                    ("Timestamp", (1, 0)),
                    ("NOP", None),
                    ("WScale", 7),
                ],
            ),
            ("MSS last", "SEC", [("SAckOK", b""), ("Timestamp", (7, 0)), ("MSS", 65_535)]),
            ("a NOP before", "S", [("NOP", None), ("MSS", 1461), ("NOP", None)]),
            ("exactly the limit", "S", [("MSS", limit)]),
            ("above the limit by one", "S", [("MSS", limit + 1)]),
            ("below the limit", "S", [("MSS", 536)]),
            ("no option", "S", []),
            ("other options only", "S", [("SAckOK", b""), ("WScale", 7)]),
            ("not a SYN", "A", [("MSS", 9000)]),
        ):
            if kind == "number" and what not in ("SYN", "SYN-ACK", "MSS last", "a NOP before"):
                continue
            packet = tcp(dst, tcp_flags=flags, tcp_options=options, data=b"")
            result = clamped(packet, limit) if "S" in flags else packet
            case(
                f"{name}: MSS {kind}, {what}",
                MSS,
                world.send(svc, eth(packet), flow_of(packet), result=eth(result)),
                rewrites=True,
            )
    dst, svc = vip(30, way, inner), f"number-{name}"
    packet = tcp(dst, tcp_flags="S", tcp_options=[("MSS", 1460)], data=pattern(101))
    case(
        f"{name}: MSS, data and QinQ",
        MSS,
        world.send(
            svc,
            eth(packet, [Dot1AD(vlan=7), 8]),
            flow_of(packet),
            result=eth(clamped(packet, 1300), [Dot1AD(vlan=7), 8]),
        ),
        rewrites=True,
    )
    # A checksum that was wrong stays as wrong as it was (RFC 1624, equation 3).
    packet = tcp(dst, tcp_flags="S", tcp_options=[("MSS", 1460)], data=b"")
    true = (
        struct.unpack_from("!H", bytes(packet[TCP]), 16)[0]
        if inner == 6
        else IP(bytes(packet))[TCP].chksum
    )
    packet = packet.__class__(bytes(packet))
    wrong, result = packet.copy(), clamped(packet, 1300)
    wrong[TCP].chksum = packet[TCP].chksum ^ 0x0101
    total = (~wrong[TCP].chksum & 0xFFFF) + (~1460 & 0xFFFF) + 1300
    total = (total & 0xFFFF) + (total >> 16)
    result[TCP].chksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    case(
        f"{name}: MSS, the checksum was wrong",
        MSS,
        world.send(svc, eth(wrong), flow_of(packet), result=eth(result)),
        rewrites=True,
        bad=True,
    )

for fam in FAMILIES:
    world, dst, svc = World(MSS), vip(30, WAYS[0], fam), f"number-l2dsr-{fam}"
    for what, options in (
        ("length 3", "020305b4"),
        ("length 5", "020505b400000000"),
        ("length 0", "020005b4"),
        ("length 1", "020105b4"),
        ("length 4, cut short", "01010204"),
        ("kind alone at the end", "01010102"),
        ("behind the end of options", "00000000020405b4"),
        ("behind an option of length 0", "08000000020405b4"),
        ("behind an option of length 1", "fd010000020405b4"),
        ("behind an option that is too long", "080c0000020405b4"),
    ):
        options = bytes.fromhex(options)
        packet = tcp(dst, tcp_flags="S", data=options)
        packet[TCP].dataofs = 5 + len(options) // 4
        case(
            f"mss-{fam}: malformed, {what}",
            MSS,
            world.send(svc, eth(packet), flow_of(packet)),
            rewrites=True,
            bad=True,
        )
    packet = tcp(dst, tcp_flags="S", data=b"")
    packet[TCP].dataofs = 15
    case(
        f"mss-{fam}: data offset beyond the packet",
        MSS,
        world.send(svc, eth(packet), flow_of(packet)),
        rewrites=True,
        bad=True,
    )
    packet = tcp(dst, tcp_flags="S", data=bytes.fromhex("020405b4"))
    packet[TCP].dataofs = 4
    case(
        f"mss-{fam}: data offset 4",
        MSS,
        world.send(svc, eth(packet), flow_of(packet)),
        rewrites=True,
        bad=True,
    )
    # What looks like an option, in the data.
    packet = tcp(dst, tcp_flags="S", data=bytes.fromhex("020405b4"))
    case(
        f"mss-{fam}: an option in the data",
        MSS,
        world.send(svc, eth(packet), flow_of(packet)),
        rewrites=True,
    )
    # An option of an unknown kind is stepped over, with an MSS look-alike inside.
    options = bytes.fromhex("fd06020405b40101020405b4")
    packet = tcp(dst, tcp_flags="S", data=options)
    packet[TCP].dataofs = 8
    result = tcp(
        dst, tcp_flags="S", data=options[:-2] + struct.pack("!H", 1300), sport=packet[TCP].sport
    )
    result[TCP].dataofs = 8
    case(
        f"mss-{fam}: behind an unknown option",
        MSS,
        world.send(svc, eth(packet), flow_of(packet), result=eth(result)),
        rewrites=True,
    )
    # At an odd offset the bytes of the checksum's words change places.
    for lead in (1, 2, 3):
        options = [("NOP", None)] * lead + [("MSS", 1460)] + [("NOP", None)] * (4 - lead)
        packet = tcp(dst, tcp_flags="S", tcp_options=options, data=b"")
        case(
            f"mss-{fam}: behind {lead} NOPs",
            MSS,
            world.send(svc, eth(packet), flow_of(packet), result=eth(clamped(packet, 1300))),
            rewrites=True,
        )
packet = v6_with(
    vip(30, WAYS[0], 6),
    HOP_BY_HOP,
    option(),
    make=TCP(sport=client_port(), dport=80, flags="S", options=[("MSS", 1460)]),
)
case(
    "mss-6: behind extensions",
    MSS,
    World(MSS).send(
        "number-l2dsr-6", eth(packet), flow_of(packet), result=eth(clamped(packet, 1300))
    ),
    rewrites=True,
)
packet = ip(CLIENT[4], vip(30, WAYS[0], 4), 6, options=[IPOption_NOP()] * 12) / TCP(
    sport=client_port(), dport=80, flags="S", options=[("MSS", 1460)]
)
case(
    "mss-4: behind options of IP",
    MSS,
    World(MSS).send(
        "number-l2dsr-4", eth(packet), flow_of(packet), result=eth(clamped(packet, 1300))
    ),
    rewrites=True,
)
