"""What the kernel gets."""

from kit import *

for kind, world in (("kernel", PLAIN), ("no kernel", World(DEDICATED))):
    config = world.config
    given = (
        (lambda frame: punt(frame)) if kind == "kernel" else (lambda frame: drop("not_ours", frame))
    )

    def leaves(what, *frames, **flags):
        case(f"{kind}: {what}", config, *(given(frame) for frame in frames), **flags)

    who_has = ARP(op=1, hwsrc=CLIENT_MAC, psrc="10.0.0.1", pdst="10.0.0.2")
    leaves("ARP", eth(who_has, dst="ff:ff:ff:ff:ff:ff"), eth(who_has))
    solicit = (
        ip("fd00::1", "ff02::1:ff00:2", 58, hops=255)
        / ICMPv6ND_NS(tgt="fd00::2")
        / ICMPv6NDOptSrcLLAddr(lladdr=CLIENT_MAC)
    )
    leaves("neighbour discovery", eth(solicit, dst="33:33:ff:00:00:02"))
    leaves(
        "echo to a VIP",
        eth(ip(CLIENT[4], V4, 1) / ICMP(type=8, id=1, seq=1) / Raw(b"ping")),
        eth(ip(CLIENT[6], V6) / ICMPv6EchoRequest(id=1, seq=1, data=b"ping")),
    )
    leaves("another port", eth(tcp(V4, 81)), eth(udp(V4, 54)), eth(tcp(V6, 81)), eth(udp(V6, 54)))
    leaves(
        "another protocol",
        eth(udp(V4, 80)),
        eth(tcp(V4, 53)),
        eth(udp(V6, 80)),
        eth(sctp(V4, 80)),
        eth(sctp(V6, 53)),
    )
    leaves(
        "no service's address",
        eth(tcp("10.0.0.2", 80)),
        eth(tcp("fd00::2", 22)),
        eth(tcp("10.10.1.2")),
    )
    leaves(
        "LLDP, an unknown EtherType, a length",
        *(
            eth(b"\x45" + bytes(45), dst=dst)[:12] + t + bytes(46)
            for dst, t in (
                ("01:80:c2:00:00:0e", b"\x88\xcc"),
                (OUR_MAC, b"\x12\x34"),
                (OUR_MAC, b"\x00\x2e"),
            )
        ),
        bad=True,
    )
    leaves(
        "a group's frame",
        eth(tcp(V4), dst="ff:ff:ff:ff:ff:ff"),
        eth(udp(V6), dst="33:33:00:00:00:01"),
    )
    leaves("three VLANs", eth(tcp(V4), [7, 8, 9]))
    leaves(
        "ESP, GRE, OSPF",
        *(eth(other(dst, proto)) for dst in (V4, V6) for proto in (50, 47, 89)),
        bad=True,
    )
    leaves("no next header", eth(ip(CLIENT[6], V6, 59) / Raw(b"x")))
    leaves(
        "IGMP",
        eth(ip("10.0.0.1", "224.0.0.1", 2, hops=1) / IGMP(type=0x11), dst="01:00:5e:00:00:01"),
    )
    leaves(
        "fragments of an echo",
        *(
            eth(piece)
            for piece in cut(
                ip(CLIENT[4], V4, 1, flags=0) / ICMP(type=8) / Raw(pattern(100)),
                [(0, 64), (64, None)],
            )
        ),
    )
    leaves(
        "fragments for nobody",
        *(
            eth(piece)
            for dst in ("10.0.0.2", "fd00::2")
            for piece in cut(udp(dst, data=pattern(100), flags=0), [(64, None), (0, 64)])
        ),
    )
