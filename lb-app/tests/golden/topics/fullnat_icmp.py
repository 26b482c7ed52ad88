"""ICMP errors about connections of fullnat, both ways; between families by RFC 7915 4.2 and 5.2."""

from kit import *

WORLD = Translator(FULLNAT)

KINDS = {
    4: ERRORS[4]
    + [(f"unreachable, code {code}", ICMP(type=3, code=code)) for code in (0, 2, 5, 9, 10, 13, 15)]
    + [("reassembly time exceeded", ICMP(type=11, code=1))]
    + [(f"parameter problem at {at}", ICMP(type=12, ptr=at)) for at in (0, 2, 8, 9, 12, 16, 19)]
    + [("fragmentation needed, 1480", ICMP(type=3, code=4, nexthopmtu=1480))]
    + [("fragmentation needed, 68", ICMP(type=3, code=4, nexthopmtu=68))],
    6: ERRORS[6]
    + [(f"unreachable, code {code}", ICMPv6DestUnreach(code=code)) for code in (0, 1, 2)]
    + [("reassembly time exceeded", ICMPv6TimeExceeded(code=1))]
    + [(f"parameter problem at {at}", ICMPv6ParamProblem(code=0, ptr=at)) for at in (0, 1, 4, 6)]
    + [(f"parameter problem at {at}", ICMPv6ParamProblem(code=0, ptr=at)) for at in (7, 8, 24, 39)]
    + [("too big, 1280", ICMPv6PacketTooBig(mtu=1280))],
}
# There is nothing that says the same (RFC 7915 4.2, 5.2).
UNKNOWN = {
    4: [("code 14", ICMP(type=3, code=14)), ("pointer 20", ICMP(type=12, ptr=20))],
    6: [
        ("code 2 of a parameter problem", ICMPv6ParamProblem(code=2, ptr=6)),
        ("pointer 40", ICMPv6ParamProblem(code=0, ptr=40)),
        ("pointer 2", ICMPv6ParamProblem(code=0, ptr=2)),
    ],
}

LAYERS = (("TCP", "web", TCP), ("UDP", "dns", UDP))


def connection(name, fam, layer):
    """A new client, and the step that makes it known."""
    client = CLIENT[fam], client_port()
    l4 = TCP(flags="S") if layer is TCP else UDP()
    return client, WORLD.forth(name, told(client, WORLD.vip(name), l4))


for (fam, back), (protocol, kind, layer) in itertools.product(PAIRS, LAYERS):
    pair = f"{fam}{back}"
    name = f"{kind}-{pair}"
    flags = {"rewrites": True} | ({"pool": POOL[back]} if kind == "dns" else {})
    l4 = layer() / Raw(pattern(64))
    label = f"fullnat-{pair}: ICMP about {protocol}"

    for what, icmp in KINDS[fam]:
        for length in (8, 72):
            client, opening = connection(name, fam, layer)
            step = WORLD.error_forth(name, client, icmp, l4, length)
            case(f"{label}, {what}, {length} bytes quoted", FULLNAT, opening, step, **flags)
    for what, icmp in KINDS[back]:
        for length in (8, 72):
            client, opening = connection(name, fam, layer)
            step = WORLD.error_back(name, client, icmp, l4, length)
            what_ever = f"{label}, backend's side, {what}, {length} bytes quoted"
            case(what_ever, FULLNAT, opening, step, **flags)

    # Of the ends themselves, with much quoted, in a VLAN.
    client, opening = connection(name, fam, layer)
    unreachable = ERRORS[fam][2][1]
    step = WORLD.error_forth(name, client, unreachable, l4, 72, [7], src=client[0])
    case(f"{label}, of the client itself", FULLNAT, opening, step, **flags)
    client, opening = connection(name, fam, layer)
    unreachable, server_address = ERRORS[back][2][1], WORLD.backend(name)[0]
    step = WORLD.error_back(name, client, unreachable, l4, 72, [7], src=server_address)
    case(f"{label}, of the backend itself", FULLNAT, opening, step, **flags)

    if (fam, back) == (6, 4) and layer is UDP:
        # A router that does not tell its MTU (RFC 1191 7.1): the next plateau, but what IPv6 has to
        # carry at least.
        for length, told_mtu in ((1700, 1500), (1492, 1280), (1400, 1280)):
            client, opening = connection(name, fam, layer)
            long = UDP() / Raw(pattern(length - 28))
            says = ICMP(type=3, code=4, nexthopmtu=0)
            step = WORLD.error_back(name, client, says, long, 8, answer_mtu=told_mtu)
            what = f"{label}, an MTU that is not told, {length} bytes"
            case(what, FULLNAT, opening, step, **flags)

    if fam != back:
        for what, icmp in UNKNOWN[fam]:
            client, opening = connection(name, fam, layer)
            quote = quoted(told(WORLD.vip(name), client, l4), 8)
            step = drop("untranslatable", eth(error(WORLD.vip(name)[0], icmp, quote)))
            case(f"{label}, {what}", FULLNAT, opening, step, **flags)
        # A checksum that was wrong would be right in the other family.
        client, opening = connection(name, fam, layer)
        quote = quoted(told(WORLD.vip(name), client, l4), 8)
        packet = error(WORLD.vip(name)[0], NEEDED[fam], quote)
        frame = bytearray(eth(packet))
        frame[-1] ^= 1
        step = drop("bad_checksum", bytes(frame))
        case(f"{label}, a wrong checksum", FULLNAT, opening, step, bad=True, **flags)
