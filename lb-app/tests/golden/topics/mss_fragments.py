"""The segment size in SYNs that come in pieces: with data (TCP Fast Open, RFC 7413), over a narrow link."""

from kit import *

from .mss import clamped

LIMIT = 1300
OPTIONS = [
    ("SAckOK", b""),
    ("Timestamp", (7, 0)),
    ("MSS", 1460),
    ("NOP", None),
    ("WScale", 7),
]  # 20 bytes, and the segment size is in those from 12 to 16

for way, inner, name in per_way():
    world, dst, svc = World(MSS), vip(30, way, inner), f"number-{name}"
    for what, ranges, flags, is_clamped in (
        ("whole in the first", [(0, 48), (48, None)], "S", True),
        ("of a SYN-ACK", [(0, 48), (48, None)], "SA", True),
        ("the first has no data", [(0, 40), (40, None)], "S", True),
        # Nobody knows what the options are that are not there.
        ("options are cut", [(0, 32), (32, None)], "S", False),
        ("the first has no options", [(0, 24), (24, None)], "S", False),
        ("not a SYN", [(0, 48), (48, None)], "A", False),
    ):
        for order in ("in order", "reversed"):
            packet = datagram(dst, pattern(100), 80, tcp, tcp_flags=flags, tcp_options=OPTIONS)
            result = clamped(packet, LIMIT) if is_clamped else packet
            ident = new_ident()
            frames, results = (
                [eth(piece) for piece in cut(each, ranges, ident=ident)]
                for each in (packet, result)
            )
            if is_clamped:
                # The second has nothing that changes, and the checksum is in the first.
                assert frames[0] != results[0] and frames[1] == results[1]
            rules = ["flow", "fragment"]
            steps = [
                world.send(svc, frame, flow_of(packet), rule, result=sent)
                for frame, rule, sent in zip(frames, rules, results)
            ]
            more = {"order": [1, 0]} if order == "reversed" else {}
            if more:
                steps.reverse()
            case(f"{name}: MSS in pieces, {what}, {order}", MSS, *steps, rewrites=True, **more)
