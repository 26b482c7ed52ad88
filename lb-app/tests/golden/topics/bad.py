"""Bad headers: the same in every mode, so once."""

from kit import *


def refused(what, reason, *frames):
    """Cases of frames that are dropped, and do no harm to the good ones around them."""
    good = tcp(V4, sport=40_000)
    around = PLAIN.send("web-l2dsr-4", eth(good), flow_of(good))
    steps = [
        around,
        *(drop(reason, frame) for frame in frames),
        PLAIN.send("web-l2dsr-4", eth(good), flow_of(good)),
    ]
    case(f"bad: {what}", WEB, *steps, bad=True)


def whole4(**more):
    return bytes(tcp(V4, **more))


refused("a runt", "truncated", eth(tcp(V4))[:13], b"\x02")
refused("cut within a VLAN tag", "truncated", eth(tcp(V4), [7])[:17], eth(tcp(V4), [7, 8])[:21])
refused("nothing behind the Ethernet header", "truncated", eth(tcp(V4))[:14], eth(tcp(V6))[:14])
refused("IPv4 header cut short", "truncated", eth(tcp(V4))[: 14 + 19], eth(tcp(V4), [7])[: 18 + 1])
refused(
    "IPv4 options cut short",
    "truncated",
    eth(fixed_header(whole4()[:24], version_ihl=0x4F, total_len=24)),
)
refused(
    "IPv4 header length beyond the total length",
    "truncated",
    eth(fixed_header(whole4(), version_ihl=0x4F, total_len=40) + bytes(40)),
)
refused(
    "IPv4 total length beyond the frame",
    "truncated",
    eth(fixed_header(whole4(), total_len=45)),
    eth(fixed_header(whole4(), total_len=0xFFFF)),
)
refused(
    "IPv4 total length below the header's",
    "truncated",
    eth(fixed_header(whole4(), total_len=19)),
    eth(fixed_header(whole4(), total_len=0)),
)
refused("IPv4 frame cut by a byte", "truncated", eth(tcp(V4))[:-1])
for ihl in range(5):
    refused(
        f"IPv4 header of {ihl} words",
        "bad_header_length",
        eth(b"\x45" + fixed_header(whole4(), version_ihl=0x40 | ihl)[1:]).replace(
            b"\x08\x00\x45", bytes([8, 0, 0x40 | ihl]), 1
        ),
    )
for version in (0, 5, 6, 15):
    frame = eth(whole4())
    refused(
        f"version {version} as IPv4",
        "bad_version",
        frame[:14] + bytes([version << 4 | 5]) + frame[15:],
    )
for version in (0, 4, 7):
    frame = eth(bytes(tcp(V6)))
    refused(
        f"version {version} as IPv6", "bad_version", frame[:14] + bytes([version << 4]) + frame[15:]
    )
for at, what in ((1, "TOS"), (8, "TTL"), (11, "checksum"), (13, "source"), (4, "id")):
    frame = bytearray(eth(tcp(V4)))
    frame[14 + at] ^= 1
    refused(f"IPv4 header checksum, {what}", "bad_checksum", bytes(frame))
frame = bytearray(
    eth(
        ip(CLIENT[4], V4, 6, options=[IPOption_RR(routers=["0.0.0.0"] * 3)])
        / TCP(sport=1, dport=80)
    )
)
frame[14 + 24] ^= 1
refused("IPv4 header checksum, options", "bad_checksum", bytes(frame))
for src in (
    "0.0.0.0",
    "0.1.2.3",
    "127.0.0.1",
    "127.255.0.1",
    "224.0.0.1",
    "239.1.2.3",
    "240.0.0.1",
    "255.255.255.255",
):
    refused(f"source {src}", "bad_source", eth(tcp(V4, src=src)), eth(udp(V4, src=src)))
for src in ("::", "::1", "ff02::1", "ff0e::1"):
    refused(f"source {src}", "bad_source", eth(tcp(V6, src=src)), eth(udp(V6, src=src)))
refused("source is the destination", "same_source", eth(tcp(V4, src=V4)), eth(udp(V6, src=V6)))
refused("IPv6 header cut short", "truncated", eth(tcp(V6))[: 14 + 39])
refused("IPv6 payload length beyond the frame", "truncated", eth(tcp(V6))[:-1])
frame = bytearray(eth(tcp(V6)))
frame[18:20] = b"\xff\xff"
refused("IPv6 payload length 65535", "truncated", bytes(frame))
refused(
    "nine extension headers",
    "too_many_extensions",
    eth(v6_with(V6, *[option()] * 9)),
    eth(v6_with(V6, *[option()] * 20)),
)
refused(
    "extension header cut short",
    "truncated",
    eth(ip(CLIENT[6], V6, 60) / Raw(b"\x06\x00\x01")),
    eth(ip(CLIENT[6], V6, 0) / Raw(b"\x06\x01\x01\x04\0\0\0\0")),
)
refused(
    "extension header beyond the packet",
    "truncated",
    eth(ip(CLIENT[6], V6, 43) / Raw(b"\x06\xff\x00\x00\0\0\0\0") / TCP(sport=1, dport=80)),
)
refused(
    "extension header announced, none there",
    "truncated",
    eth(bytes(ip(CLIENT[6], V6, 60)), pad=bytes(20)),
)
refused("fragment header cut short", "truncated", eth(ip(CLIENT[6], V6, 44) / Raw(b"\x06\x00\x00")))
for fam, dst in ((4, V4), (6, V6)):
    head = lambda proto: ip(CLIENT[fam], dst, proto)
    refused(
        f"TCP header cut short, IPv{fam}",
        "truncated",
        eth(head(6) / Raw(bytes(TCP(sport=1, dport=80))[:19])),
        eth(head(6) / Raw(b"\0\x01\0")),
        eth(head(6)),
    )
    refused(
        f"UDP header cut short, IPv{fam}",
        "truncated",
        eth(head(17) / Raw(bytes(UDP(sport=1, dport=53))[:7])),
        eth(head(17)),
    )
    # What is padding for IP is none of TCP's.
    refused(
        f"TCP header continued in the padding, IPv{fam}",
        "truncated",
        eth(head(6) / Raw(bytes(TCP(sport=1, dport=80))[:12]), pad=bytes(30)),
    )
    refused(
        f"another station's frame, IPv{fam}",
        "not_ours",
        eth(tcp(dst), dst="02:00:00:00:00:09"),
        eth(udp(dst), [7], dst="02:00:00:00:00:09"),
    )
