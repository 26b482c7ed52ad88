"""Which service."""

from kit import *

for fam in FAMILIES:
    host = lambda h, net="70": f"10.{net}.0.{h}" if fam == 4 else f"fd{net}::{h:x}"
    far = "10.70.9.9" if fam == 4 else "fd70:0:9::9"
    for what, packet, service_name in (
        ("an exact port", tcp(host(1), 80), "exact"),
        ("a range's first port", tcp(host(1), 8000), "range"),
        ("a range's last port", tcp(host(1), 8099), "range"),
        ("an exact port within a range", tcp(host(1), 8050), "in-range"),
        (
            "behind the range: the longer prefix's any port after the shorter's range",
            tcp(host(1), 8100),
            "net-range",
        ),
        ("before the range", tcp(host(1), 7999), "any-port"),
        ("any port", tcp(host(1), 9999), "any-port"),
        ("port 0 is any port", tcp(host(1), 0), "any-port"),
        ("a range of one", udp(host(1), 5000), "udp-range"),
        ("any protocol: UDP", udp(host(1), 5001), "any-protocol"),
        ("any protocol: SCTP", sctp(host(1), 81), "any-protocol"),
        ("SCTP", sctp(host(1), 80), "sctp"),
        (
            "any protocol: GRE",
            other(host(1), 47, bytes(GRE(proto=0x0800)) + bytes(tcp("10.1.1.1"))),
            "any-protocol",
        ),
        (
            "any protocol: ESP",
            other(host(1), 50, bytes(ESP(spi=1, seq=1, data=bytes(32)))),
            "any-protocol",
        ),
        (
            "an exact port of a prefix before any port of the address",
            tcp(host(1), 443),
            "net-https",
        ),
        (
            "an exact port of the shortest prefix before any port of the address",
            tcp(host(1), 22),
            "wide-exact",
        ),
        ("the prefix's exact port", tcp(host(2), 80), "net-exact"),
        ("the prefix's range", tcp(host(2), 8050), "net-range"),
        ("the prefix's any port", tcp(host(2), 9001), "net-any-port"),
        ("the prefix's first address", tcp(host(0), 80), "net-exact"),
        (
            "the prefix's last address",
            tcp(host(255) if fam == 4 else "fd70::ffff:ffff:ffff:ffff", 80),
            "net-exact",
        ),
        (
            "behind the prefix",
            tcp("10.70.1.0" if fam == 4 else "fd70:0:0:1::", 80),
            "wide-any-protocol",
        ),
        ("the wide prefix, any protocol", udp(far, 53), "wide-any-protocol"),
        ("the wide prefix, exact port", tcp(far, 22), "wide-exact"),
        (
            "the wide prefix's protocol for a host of the narrow one",
            udp(host(2), 53),
            "wide-any-protocol",
        ),
        ("a UDP range's first port", udp(host(1, "71"), 1), "alone"),
        ("a UDP range's last port", udp(host(1, "71"), 100), "alone"),
        ("a range up to the last port", udp(host(1, "71"), 65_535), "top"),
        ("a range from its first port", udp(host(1, "71"), 65_000), "top"),
    ):
        frame = eth(packet)
        case(
            f"match-{fam}: {what}",
            MATCH,
            MATCHED.send(f"{service_name}-{fam}", frame, flow_of(packet)),
        )
    for what, packet in (
        ("behind a UDP range", udp(host(1, "71"), 101)),
        ("before a UDP range", udp(host(1, "71"), 64_999)),
        ("port 0 is in no range", udp(host(1, "71"), 0)),
        ("another protocol than the range's", tcp(host(1, "71"), 50)),
        ("outside of all prefixes", tcp("10.69.255.255" if fam == 4 else "fd6f::1", 80)),
    ):
        case(f"match-{fam}: {what}", MATCH, punt(eth(packet)))
    echo = ICMP(type=8, id=1) if fam == 4 else ICMPv6EchoRequest(id=1)
    case(
        f"match-{fam}: an echo is no protocol of any",
        MATCH,
        punt(eth(ip(CLIENT[fam], host(1), 1 if fam == 4 else 58) / echo)),
    )
    if fam == 6:
        packet = v6_with(host(1), HOP_BY_HOP, option(), make=TCP(sport=1, dport=8050))
        case(
            "match-6: a range behind extensions",
            MATCH,
            MATCHED.send("in-range-6", eth(packet), flow_of(packet)),
        )
