"""Frames of which some bytes are Weir's to choose: ports and addresses of a pool, identifications."""

import ipaddress
import struct
from dataclasses import dataclass

from .frames import SCTP_PROTO, ip_packet, l3_offset
from .leaving import Out

# What names are, as long as nobody has chosen; and another value, to see what depends on them.
NOTHING = {2: 0, 4: "0.0.0.0", 16: "::"}
SOMETHING = {2: 0x5AA5, 4: "1.2.4.8", 16: "102:408:1020:4080:103:70f:1f3f:7f01"}


def octets(value):
    return (
        struct.pack("!H", value) if isinstance(value, int) else ipaddress.ip_address(value).packed
    )


def opened(build, udp=False, **names):
    """The frame that `build` makes, with keyword arguments `names`, each of so many bytes: their bytes
    are open wherever they are in it.

    Checksums that cover open bytes are "=NAMES": in the frame as if all of the bytes were 0, and less
    by their sum in truth, or more by what has a "-". `udp`: a checksum that would be 0 is 0xffff (RFC 768).
    One of SCTP is "=crc,LENGTH", of a packet of so many bytes.
    """
    nothing = {name: NOTHING[length] for name, length in names.items()}
    base = build(**nothing)
    wild, sums = {}, {}
    crc_at, sctp_length = sctp_checksum(base)
    for name, length in names.items():
        value = octets(SOMETHING[length])
        other = build(**nothing | {name: SOMETHING[length]})
        assert len(other) == len(base)
        at = 0
        while at < len(base):
            if at == crc_at and base[at : at + 4] != other[at : at + 4]:
                wild[at] = (4, f"=crc,{sctp_length}")
                at += 4
            elif base[at : at + 2] == other[at : at + 2]:
                at += 2
            elif base[at : at + length] == bytes(length) and other[at : at + length] == value:
                wild[at] = (length, name)
                at += length
            else:
                sign = sign_of(base[at : at + 2], other[at : at + 2], value)
                sums.setdefault(at, []).append(sign + name)
                at += 2
    for at, covered in sums.items():
        wild[at] = (2, "=" + ",".join(covered) + (",udp" if udp else ""))
    return Out(base, tuple((at, length, name) for at, (length, name) in sorted(wild.items())))


def sctp_checksum(frame):
    """Where it is in a frame with a whole packet of SCTP without extension headers, and that packet's
    length."""
    packet = ip_packet(frame)
    if packet[0] >> 4 == 4:
        header, proto = (packet[0] & 15) * 4, packet[9]
        is_whole = struct.unpack_from("!H", packet, 6)[0] & 0x3FFF == 0
    else:
        header, proto, is_whole = 40, packet[6], True
    if proto != SCTP_PROTO or not is_whole:
        return None, 0
    return l3_offset(frame) + header + 8, len(packet) - header


def sign_of(base, other, value):
    """ "" for a checksum that is what it has to be if the sum that it is made of has grown by `value`;
    "-" if that is less by it: what covers both a value and checksums of it."""
    words = lambda data: sum(struct.unpack(f"!{len(data) // 2}H", data))
    less = words(base) - words(other)
    signs = {less - words(value): "", less + words(value): "-"}
    return next(sign for rest, sign in signs.items() if rest % 0xFFFF == 0)


@dataclass(frozen=True)
class Stand:
    """Where a connection stands in a pool: Weir chooses. Pools of one address leave the port only."""

    pool: str
    number: int = 1

    @property
    def names(self):
        """What is open, for [`opened`]."""
        net = ipaddress.ip_network(self.pool)
        port = {f"P{self.number}": 2}
        if net.num_addresses == 1:
            return port
        return port | {f"A{self.number}": net.max_prefixlen // 8}

    def end(self, chosen):
        """Address and port, of what [`opened`] gives to `build`."""
        net = ipaddress.ip_network(self.pool)
        return (
            chosen.get(f"A{self.number}", str(net.network_address)),
            chosen[f"P{self.number}"],
        )
