"""SCTP over fullnat: a port changes in every packet, and so does its CRC32c (RFC 9260 6.8)."""

from kit import *

WORLD = Translator(FULLNAT)
INIT = SCTPChunkInit(init_tag=9, a_rwnd=65535)
INIT_ACK = SCTPChunkInitAck(init_tag=7, a_rwnd=65535)
COOKIE_ECHO = SCTPChunkCookieEcho(cookie=b"cookie")
# What is quoted is not all there: nobody can tell its checksum, which is any.
QUOTED = SCTP(tag=7, chksum=0x01020304) / SCTPChunkData(data=pattern(64), tsn=1)


def data(text=b"weir"):
    return SCTPChunkData(data=text, tsn=1)


for fam, back in PAIRS:
    pair = f"{fam}{back}"
    name = f"sctp-{pair}"
    vip = WORLD.vip(name)

    def from_client(client, chunk, tag=7, **header):
        return told(client, vip, SCTP(tag=tag) / chunk, **header)

    def opens(client):
        return WORLD.forth(name, from_client(client, INIT, tag=0))

    def forth(what, chunk=None, tags=(), pad=b"", **header):
        """A client's packet, which comes to the backend."""
        client = CLIENT[fam], client_port()
        step = WORLD.forth(name, from_client(client, chunk or data(), **header), tags, pad)
        case(f"fullnat-{pair}: SCTP, {what}", FULLNAT, step, rewrites=True)

    def answer(chunk, **header):
        return lambda end: told(WORLD.backend(name), end, SCTP(tag=9) / chunk, **header)

    # An association, from beginning to end: one port throughout.
    client = CLIENT[fam], client_port()
    steps = [
        opens(client),
        WORLD.back(name, client, answer(INIT_ACK)),
        WORLD.forth(name, from_client(client, COOKIE_ECHO)),
        WORLD.back(name, client, answer(SCTPChunkCookieAck())),
        WORLD.forth(name, from_client(client, data(b"a request"))),
        WORLD.back(name, client, answer(SCTPChunkSACK(cumul_tsn_ack=1) / data(pattern(700)))),
        WORLD.forth(name, from_client(client, SCTPChunkShutdown(cumul_tsn_ack=1))),
        WORLD.back(name, client, answer(SCTPChunkShutdownAck())),
        WORLD.forth(name, from_client(client, SCTPChunkShutdownComplete())),
    ]
    case(f"fullnat-{pair}: an association of SCTP", FULLNAT, *steps, rewrites=True)

    # It ends at once, by either side, and begins again at the same port; and within itself (RFC 9260
    # 5.2.2), when the backend decides.
    client = CLIENT[fam], client_port()
    steps = [
        opens(client),
        WORLD.back(name, client, answer(SCTPChunkAbort())),
        opens(client),
        WORLD.back(name, client, answer(INIT_ACK)),
        WORLD.forth(name, from_client(client, COOKIE_ECHO)),
        opens(client),
        WORLD.forth(name, from_client(client, SCTPChunkAbort())),
        opens(client),
    ]
    case(f"fullnat-{pair}: SCTP, aborted and again", FULLNAT, *steps, rewrites=True)

    # What ends nothing begins nothing; whoever is not sure that it is over is told by a backend.
    for what, chunk in (("abort", SCTPChunkAbort()), ("end", SCTPChunkShutdownComplete())):
        packet = from_client((CLIENT[fam], client_port()), chunk)
        step = drop("no_connection", eth(packet))
        case(f"fullnat-{pair}: SCTP, an {what} of nothing", FULLNAT, step)
    forth("a shutdown of nothing", SCTPChunkShutdownAck())
    forth("in the middle")

    # The same client's same port over TCP, at another port of the pool.
    client = CLIENT[fam], client_port()
    tcp_syn = told(client, WORLD.vip(f"web-{pair}"), TCP(flags="S"))
    steps = [opens(client), WORLD.forth(f"web-{pair}", tcp_syn, stand=WORLD.stand(name, 2))]
    case(f"fullnat-{pair}: SCTP and TCP of one client", FULLNAT, *steps, rewrites=True)

    # The backend, but not over SCTP; and SCTP, but not the backend.
    client = CLIENT[fam], client_port()
    stranger = server(back, 99), WORLD.backend(name)[1]
    as_tcp = lambda end: eth(told(WORLD.backend(name), end, TCP(flags="SA")))
    strange = lambda end: eth(told(stranger, end, SCTP(tag=9) / INIT_ACK))
    steps = [opens(client)]
    steps += [punt(WORLD.open(make, WORLD.stand(name))) for make in (as_tcp, strange)]
    case(f"fullnat-{pair}: SCTP, others at its port", FULLNAT, *steps, rewrites=True)

    # Headers.
    forth("TTL 2", hops=2)
    forth("DSCP and ECN", tos=0xBB)
    forth("a VLAN", tags=[7])
    forth("padding", SCTPChunkCookieAck(), pad=b"\xaa" * 10)
    header_bytes = {4: 20, 6: 40}[fam] + 12 + 16
    for length in (1256, 1260, 1264, 1276, 1280, 1284):
        forth(f"{length} bytes", data(pattern(length - header_bytes)))
    if fam == 4:
        forth("DF not set", flags=0, ident=7)
        forth("options", options=[IPOption_NOP()] * 8)
    else:
        forth("a flow label", label=0xABCDE)

    # TTL, and too big.
    client = CLIENT[fam], client_port()
    step = WORLD.told_expired(name, eth(from_client(client, data(), hops=1)))
    case(f"fullnat-{pair}: SCTP, TTL 1", FULLNAT, step)
    more = {4: {4: 0, 6: -20}, 6: {6: 0, 4: 20}}[fam][back]
    forth("the most that fits", data(pattern(1500 + more - header_bytes)))
    packet = from_client(client, data(pattern(1504 + more - header_bytes)))
    step = WORLD.told_too_big(name, eth(packet), 1500 + more)
    case(f"fullnat-{pair}: SCTP, too big", FULLNAT, step)

    # Fragments: nobody has all that the checksum covers, which would change.
    whole = from_client(client, data(pattern(400)), **({"flags": 0} if fam == 4 else {}))
    first = cut(whole, [(0, 160), (160, None)])[0]
    step = drop("untranslatable", eth(first))
    case(f"fullnat-{pair}: SCTP, a first fragment", FULLNAT, step)
    client = CLIENT[fam], client_port()
    ident = new_ident()

    def first_of_answer(end):
        header = {"flags": 0} if back == 4 else {}
        whole = told(WORLD.backend(name), end, QUOTED / Raw(pattern(300)), **header)
        first = cut(whole, [(0, 160), (160, None)], ident=ident)[0]
        return eth(first, src=WORLD.mac(name))

    frame = WORLD.open(first_of_answer, WORLD.stand(name))
    steps = [opens(client), drop("untranslatable", frame)]
    case(f"fullnat-{pair}: SCTP, a first fragment of an answer", FULLNAT, *steps, rewrites=True)

    # ICMP errors: the quoted ports change.
    sides = [
        ("", ERRORS[fam], WORLD.error_forth),
        ("backend's side, ", ERRORS[back], WORLD.error_back),
    ]
    for side, errors, error in sides:
        for what, icmp in errors:
            for length in (8, 72):
                client = CLIENT[fam], client_port()
                step = error(name, client, icmp, QUOTED, length)
                label = f"fullnat-{pair}: ICMP about SCTP, {side}{what}, {length} bytes quoted"
                case(label, FULLNAT, opens(client), step, rewrites=True)
