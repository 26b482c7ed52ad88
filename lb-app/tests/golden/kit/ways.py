"""Ways: a forwarding mode, and the family of its outer header; and the services that go them."""

import itertools

from .config import Config, port, service

WAYS = [
    ("l2dsr", None),
    ("ipip", 4),
    ("ipip", 6),
    ("gue", 4),
    ("gue", 6),
    ("gre", 4),
    ("gre", 6),
]
FAMILIES = (4, 6)
# Both on the first port's link, or behind a router whose MAC is written.
BACKEND = {4: "10.0.0.11", 6: "fd00::11"}
FAR_BACKEND = {4: "10.9.0.11", 6: "fd09::11"}
BACKEND_MAC = {4: "02:00:00:00:04:11", 6: "02:00:00:00:06:11"}


def vip(net, way, inner):
    """An address of its own for each kind of service and way."""
    place = WAYS.index(way) + 1
    return f"10.{net}.{place}.1" if inner == 4 else f"fd{net:02}::{place}:1"


def named(way, inner):
    """As in "4in6": IPv4 inside, IPv6 outside."""
    mode, outer = way
    return f"{mode}-{inner}" if outer is None else f"{mode}-{inner}in{outer}"


def services(net, kind, port, protocol, ways, backends=None, **more):
    """One service for each way and inner family."""
    backends = backends or FAR_BACKEND
    made = []
    for way, inner in itertools.product(ways, FAMILIES):
        mode, outer = way
        outer = outer or inner
        backend = (BACKEND if mode == "l2dsr" else backends)[outer]
        name = f"{kind}-{named(way, inner)}"
        address = vip(net, way, inner)
        keys = {k: v[outer] if isinstance(v, dict) else v for k, v in more.items()}
        mac = BACKEND_MAC[outer]
        made.append(service(name, address, port, protocol, mode, backend, mac, **keys))
    return made


def basic(ways):
    return (
        services(10, "web", 80, "tcp", ways)
        + services(10, "dns", 53, "udp", ways)
        + services(10, "log", 514, "udp", ways, affinity="client")
    )


MODES = {}
for mode in ("l2dsr", "ipip", "gue", "gre"):
    about = f"The basic services of {mode}."
    ways = [way for way in WAYS if way[0] == mode]
    MODES[mode] = Config(mode, about, [port()], basic(ways))

TUNNELS = [way for way in WAYS if way[0] != "l2dsr"]

ANY = Config("any", "SCTP, any port, any protocol, in every mode.", [port()])
ANY.services += services(20, "sctp", 5060, "sctp", WAYS)
ANY.services += services(21, "any", "any", "any", WAYS)
ANY.services += services(22, "sticky", "any", "udp", WAYS, affinity="client")
ANY.services += services(23, "ports", "any", "udp", WAYS)

MSS = Config("mss", "MSS clamped, to a number and to what fits, in every mode.", [port()])
MSS.services += services(30, "number", 80, "tcp", WAYS, mss=1300)
MSS.services += services(31, "auto", 80, "tcp", WAYS, mss="auto")

PREFIX = {4: "172.16.0.0/16", 6: "fd16::/64"}
SOURCES = Config("sources", "Outer sources and GUE ports other than the usual.", [port()])
SOURCES.services += services(40, "web", 80, "tcp", TUNNELS, outer_source=PREFIX)
SOURCES.services += services(
    41, "wide", 80, "tcp", TUNNELS, outer_source={4: "172.16.0.0/12", 6: "fd16:1::/32"}
)
SOURCES.services += services(
    42, "narrow", 80, "tcp", TUNNELS, outer_source={4: "172.31.7.0/30", 6: "fd16:2::/96"}
)
SOURCES.services += services(
    43, "port", 80, "tcp", [way for way in WAYS if way[0] == "gue"], gue_port=6081
)

SMALL = Config("small", "The least MTU.", [port(mtu=1280)])
SMALL.services += services(50, "web", 80, "tcp", WAYS)
SMALL.services += services(50, "dns", 53, "udp", WAYS)

JUMBO = Config("jumbo", "Jumbo frames.", [port(mtu=9000)])
JUMBO.services += services(51, "web", 80, "tcp", WAYS)

# Comes in by wan0, leaves by lan0.
TWO_ARMED = Config(
    "two-armed",
    "In by one port, out of another with a smaller MTU.",
    [
        port("wan0", mtu=9000, net="203.0.113", net6="2001:db8:1"),
        port("lan0", mac="02:00:00:00:00:03"),
    ],
)
TWO_ARMED.services += services(60, "web", 80, "tcp", WAYS, interface="lan0")

DEDICATED = Config("dedicated", "No kernel side.", [port(kernel=False)], basic([WAYS[0]]))

# Who is meant, if several services could be: each has a MAC of its own.
MATCH = Config("match", "Services that overlap.", [port()])
RANKED = [
    # address (IPv4, IPv6), port, protocol
    ("exact", "10.70.0.1", "fd70::1", 80, "tcp"),
    ("range", "10.70.0.1", "fd70::1", "8000-8099", "tcp"),
    ("in-range", "10.70.0.1", "fd70::1", 8050, "tcp"),
    ("any-port", "10.70.0.1", "fd70::1", "any", "tcp"),
    ("any-protocol", "10.70.0.1", "fd70::1", "any", "any"),
    ("udp-range", "10.70.0.1", "fd70::1", "5000-5000", "udp"),
    ("sctp", "10.70.0.1", "fd70::1", 80, "sctp"),
    ("net-exact", "10.70.0.0/24", "fd70::/64", 80, "tcp"),
    ("net-https", "10.70.0.0/24", "fd70::/64", 443, "tcp"),
    ("net-range", "10.70.0.0/24", "fd70::/64", "8000-9000", "tcp"),
    ("net-any-port", "10.70.0.0/24", "fd70::/64", "any", "tcp"),
    ("wide-any-protocol", "10.70.0.0/16", "fd70::/32", "any", "any"),
    ("wide-exact", "10.70.0.0/16", "fd70::/32", 22, "tcp"),
    ("alone", "10.71.0.1", "fd71::1", "1-100", "udp"),
    ("top", "10.71.0.1", "fd71::1", "65000-65535", "udp"),
]
for (place, (name, a4, a6, ports, protocol)), fam in itertools.product(enumerate(RANKED), FAMILIES):
    mac = f"02:00:00:07:{fam:02}:{place:02}"
    backend = f"10.0.0.{20 + place}" if fam == 4 else f"fd00::{20 + place}"
    head = (f"{name}-{fam}", a4 if fam == 4 else a6, ports, protocol, "l2dsr", backend, mac)
    MATCH.services.append(service(*head))

CONFIGS = [*MODES.values(), ANY, MSS, SOURCES, SMALL, JUMBO, TWO_ARMED, DEDICATED, MATCH]
