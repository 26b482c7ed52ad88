"""fullnat that tells the backend who the client is: TOA, and the PROXY protocol."""

from kit import *

from .fullnat import WORLD, answer, ends, segment

# The HAProxy project's "PROXY protocol", 2.2: signature, version 2 and PROXY, TCP over a family.
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
ISN, SERVER_ISN = 0xFFFF_FFF0, 7000  # it comes around
FIRST_BYTE = (ISN + 1) & 0xFFFF_FFFF


def behind(sequence, more):
    return (sequence + more) & 0xFFFF_FFFF


def proxy_header(client, service):
    addresses = packed(client[0]) + packed(service[0])
    family_byte = 0x11 if len(addresses) == 8 else 0x21
    ports = struct.pack("!HH", client[1], service[1])
    head = struct.pack("!BBH", 0x21, family_byte, len(addresses) + len(ports))
    return SIGNATURE + head + addresses + ports


def toa(client):
    """Kind 254: port and address."""
    content = struct.pack("!H", client[1]) + packed(client[0])
    return 254, content


def set_options(options):
    def change(packet):
        packet[TCP].options = options
        packet[TCP].dataofs = None
        return rebuilt(packet)

    return change


def rebuilt(packet):
    """With lengths and checksums made anew."""
    head = header_of(packet)
    if head.version == 4:
        del head.len, head.chksum
    else:
        del head.plen
    del packet[TCP].chksum
    return packet


def shifted(by=0, insert=b""):
    """The segment further on in the stream; or with something before its data."""

    def change(packet):
        l4 = packet[TCP]
        l4.seq = behind(l4.seq, by)
        data = bytes(l4.payload)
        l4.remove_payload()
        return rebuilt(packet / Raw(insert + data))

    return change


def acknowledged(ack, options=None):
    """What the client has to be told of what the backend has."""

    def change(packet):
        packet[TCP].ack = ack
        if options is not None:
            packet[TCP].options = options
        return packet

    return change


for fam, back in PAIRS:
    pair = f"{fam}{back}"
    headers = {4: 40, 6: 60}

    # TOA: until the client has sent its first bytes, where there is room.
    name, size = f"toa-{pair}", {4: 8, 6: 20}[fam]
    client = ends(fam)
    forth = lambda *what, change=None, **more: WORLD.forth(
        name, segment(client, name, *what, **more), change=change
    )
    option, mss = toa(client), 1500 - size - headers[back]
    steps = [
        forth("S", ISN, 0),
        WORLD.back(
            name,
            client,
            answer(name, "SA", SERVER_ISN, FIRST_BYTE, options=[("MSS", 1460)]),
            change=acknowledged(FIRST_BYTE, [("MSS", min(1460, mss))]),
        ),
        forth("A", FIRST_BYTE, SERVER_ISN + 1, change=set_options([option])),
        forth("PA", FIRST_BYTE, SERVER_ISN + 1, b"a request", change=set_options([option])),
        WORLD.back(name, client, answer(name, "A", SERVER_ISN + 1, behind(FIRST_BYTE, 9))),
        forth("PA", behind(FIRST_BYTE, 9), SERVER_ISN + 1, b"another"),
        forth("FA", behind(FIRST_BYTE, 16), SERVER_ISN + 1),
    ]
    case(f"toa-{pair}: a connection", FULLNAT, *steps, rewrites=True)
    client = ends(fam)
    option = toa(client)
    stamp = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
    much = stamp * 3 + [("NOP", None), ("NOP", None), ("NOP", None), ("EOL", None)]
    steps = [
        forth("S", 1, 0),
        forth("A", 2, 2, options=stamp, change=set_options([option, *stamp])),
        # 40 bytes of options: no room.
        forth("A", 2, 2, b"data", options=much),
        forth("A", 2, 2, b"", tos=0xB8, change=set_options([option])),
    ]
    case(f"toa-{pair}: options", FULLNAT, *steps, rewrites=True)
    # A segment that fills the way has no room, either; with some bytes less it has.
    client = ends(fam)
    option = toa(client)
    room = 1500 - headers[back]
    steps = [
        forth("S", 1, 0),
        forth("A", 2, 2, pattern(room)),
        forth("A", 2, 2, pattern(room - size + 1)),
        forth("A", 2, 2, pattern(room - size), change=set_options([option])),
    ]
    case(f"toa-{pair}: no room", FULLNAT, *steps, rewrites=True)

    # PROXY: before the first byte, until the backend has it.
    name, size = f"proxy-{pair}", {4: 28, 6: 52}[fam]
    client = ends(fam)
    header, mss = proxy_header(client, WORLD.vip(name)), 1500 - size - headers[back]
    assert len(header) == size
    back_step = lambda what, seq, ack, to, **more: WORLD.back(
        name,
        client,
        answer(name, what, seq, ack, **more),
        change=acknowledged(to, more.get("told")),
    )
    second, third = behind(FIRST_BYTE, 9), behind(FIRST_BYTE, 16)
    steps = [
        forth("S", ISN, 0),
        WORLD.back(
            name,
            client,
            answer(name, "SA", SERVER_ISN, FIRST_BYTE, options=[("MSS", 1460)]),
            change=acknowledged(FIRST_BYTE, [("MSS", min(1460, mss))]),
        ),
        forth("A", FIRST_BYTE, SERVER_ISN + 1, change=shifted(insert=header)),
        forth("PA", FIRST_BYTE, SERVER_ISN + 1, b"a request", change=shifted(insert=header)),
        # Some of the header, all of it, all that came.
        back_step("A", SERVER_ISN + 1, behind(FIRST_BYTE, 5), FIRST_BYTE),
        forth("PA", FIRST_BYTE, SERVER_ISN + 1, b"a request", change=shifted(insert=header)),
        back_step("A", SERVER_ISN + 1, behind(FIRST_BYTE, size), FIRST_BYTE),
        forth("PA", FIRST_BYTE, SERVER_ISN + 1, b"a request", change=shifted(size)),
        back_step("PA", SERVER_ISN + 1, behind(second, size), second, data=b"an answer"),
        forth("PA", second, SERVER_ISN + 10, b"another", change=shifted(size)),
        forth("FA", third, SERVER_ISN + 10, change=shifted(size)),
        back_step("FA", SERVER_ISN + 10, behind(third, size + 1), behind(third, 1)),
    ]
    case(f"proxy-{pair}: a connection", FULLNAT, *steps, rewrites=True)
    # Selective acknowledgements are of the backend's numbers as well.
    client = ends(fam)
    header = proxy_header(client, WORLD.vip(name))
    far = behind(FIRST_BYTE, 100), behind(FIRST_BYTE, 110)
    sack = lambda left, right: [("NOP", None), ("NOP", None), ("SAck", (left, right))]
    edges = [behind(edge, size) for edge in far]
    steps = [
        forth("S", ISN, 0),
        forth("PA", FIRST_BYTE, 2, b"a request", change=shifted(insert=header)),
        WORLD.back(
            name,
            client,
            answer(name, "A", 2, behind(second, size), options=sack(*edges)),
            change=acknowledged(second, sack(*far)),
        ),
    ]
    case(f"proxy-{pair}: selective acknowledgement", FULLNAT, *steps, rewrites=True)
    # The header has to fit as well.
    client = ends(fam)
    header = proxy_header(client, WORLD.vip(name))
    room, more = 1500 - size - headers[back], {4: {4: 0, 6: -20}, 6: {6: 0, 4: 20}}[fam][back]
    large = segment(client, name, "A", FIRST_BYTE, 2, pattern(room + 1))
    steps = [
        forth("S", ISN, 0),
        forth("A", FIRST_BYTE, 2, pattern(room), change=shifted(insert=header)),
        WORLD.told_too_big(name, eth(large), 1500 - size + more),
        forth("A", behind(FIRST_BYTE, room), 2, pattern(room + 1), change=shifted(size)),
    ]
    case(f"proxy-{pair}: no room", FULLNAT, *steps, rewrites=True)
    # What is behind the segment in the frame is none of the stream's.
    client = ends(fam)
    header = proxy_header(client, WORLD.vip(name))
    packet = segment(client, name, "A", FIRST_BYTE, 2)
    padded = eth(packet, pad=b"\xaa" * 6)
    steps = [
        forth("S", ISN, 0),
        WORLD.forth(name, packet, frame=padded, change=shifted(insert=header)),
    ]
    case(f"proxy-{pair}: padding", FULLNAT, *steps, rewrites=True)

    # A part of a segment: nothing can be put before what other parts have.
    ranges = [(0, 48), (48, None)]
    for kind in ("toa", "proxy"):
        name = f"{kind}-{pair}"
        client = ends(fam)
        opening = WORLD.forth(name, segment(client, name, "S", 1, 0))
        packet = segment(
            client, name, "A", 2, 2, pattern(101), **({"flags": 0} if fam == 4 else {})
        )
        parts = WORLD.pieces_forth(name, packet, ranges, (0, 1))
        if kind == "proxy":
            parts = [drop("untranslatable", parts[0].frame), parts[1]]
        case(f"{kind}-{pair}: in fragments", FULLNAT, opening, *parts, rewrites=True)
