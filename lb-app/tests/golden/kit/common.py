"""What several topics say their cases with."""

import itertools

from .case import World
from .packets import udp
from .ways import FAMILIES, MATCH, MODES, WAYS, named, vip

WEB = MODES["l2dsr"]
PLAIN = World(WEB)
V4, V6 = vip(10, WAYS[0], 4), vip(10, WAYS[0], 6)
MATCHED = World(MATCH)


def per_way(ways=WAYS):
    """(way, inner family, its name)."""
    for way, inner in itertools.product(ways, FAMILIES):
        yield way, inner, named(way, inner)


FIRST = "flow"  # its own ports lead it


def datagram(dst, data, dport=53, make=udp, **header):
    """A packet that may be cut into fragments."""
    packet = make(dst, dport, data=data, **header)
    if packet.version == 4:
        packet.flags = 0
    return packet


def train(world, service_name, flow, frames, first=0, rule="fragment", at=None):
    """Steps of fragments that all go to the service; the place of the first fragment has another
    rule."""
    at = at or [0] * len(frames)
    return [
        world.send(service_name, frame, flow, FIRST if i == first else rule, at[i])
        for i, frame in enumerate(frames)
    ]
