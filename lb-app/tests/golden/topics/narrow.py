"""A PROXY header over a way of 1280 bytes, of which a client of IPv6 cannot be told that it has less."""

from kit import *

from .client_address import proxy_header, shifted
from .fullnat import ends, segment

WORLD, MTU = Translator(NARROW), 1280

for fam, back in PAIRS:
    name, size = f"proxy-{fam}{back}", {4: 28, 6: 52}[fam]
    # Of a client's packet, how much fits with the header; and the largest that a client sends.
    fits = MTU - size + {4: {4: 0, 6: -20}, 6: {6: 0, 4: 20}}[fam][back]
    most = MTU if fam == 6 else fits
    headers = {4: 40, 6: 60}[fam]
    for length in sorted({fits, fits + 1, most, most + 1}):
        client = ends(fam)
        header = proxy_header(client, WORLD.vip(name))
        packet = segment(client, name, "PA", 2, 2, pattern(length - headers))
        if length <= fits:
            step = WORLD.forth(name, packet, change=shifted(insert=header))
        elif length <= most:
            step = WORLD.cut_forth(name, packet, MTU, change=shifted(insert=header))
        else:
            step = WORLD.told_too_big(name, eth(packet), most)
        steps = [
            WORLD.forth(name, segment(client, name, "S", 1, 0)),
            step,
            WORLD.forth(name, segment(client, name, "A", 3, 2, pattern(99)), change=shifted(size)),
        ]
        case(f"narrow-{fam}{back}: {length} bytes", NARROW, *steps, rewrites=True)
    if fam == 6:
        # Nobody sends extension headers with TCP.
        client = ends(fam)
        header = proxy_header(client, WORLD.vip(name))
        plain = segment(client, name, "PA", 2, 2, pattern(MTU - headers - 8))
        extended = (
            IPv6(src=plain.src, dst=plain.dst, hlim=plain.hlim)
            / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)])
            / plain[TCP]
        )
        steps = [
            WORLD.forth(name, segment(client, name, "S", 1, 0)),
            drop("too_big", eth(extended), service=name),
        ]
        case(f"narrow-{fam}{back}: behind extension headers", NARROW, *steps, rewrites=True)
