"""The services of nat and fullnat."""

from .config import Config, port, service
from .ways import BACKEND_MAC, CONFIGS, FAMILIES, WAYS, services

NAT = Config("nat", "nat, in both families.", [port()])
NAT46 = Config("nat46", "nat of IPv6 backends with IPv4 clients.", [port()])
FULLNAT = Config("fullnat", "fullnat, within families and between them.", [port()])
# As in "64": clients' family, backends' family.
PAIRS = ((4, 4), (6, 6), (6, 4), (4, 6))
# Of web, and of those that are told who the client is.
POOL_OF_ONE = {4: "10.0.0.200/32", 6: "fd00::200/128"}
CLIENT_PREFIX = "64:ff9b::/96"
POOL = {4: "10.0.0.204/30", 6: "fd00::204/126"}


def own_vip(net, fam, back):
    return f"10.{net}.{back}.1" if fam == 4 else f"fd{net}::{back}:1"


def server(fam, host):
    """On the port's link."""
    return f"10.0.0.{host}" if fam == 4 else f"fd00::{host}"


for fam in FAMILIES:
    for name, number, to, protocol, host in (
        ("web", 80, 8080, "tcp", 21),
        ("dns", 53, 5054, "udp", 22),
        ("same", 81, None, "tcp", 23),
        ("sctp", 5060, None, "sctp", 24),
        ("any", "any", None, "any", 25),
        ("mss", 82, None, "tcp", 26),
    ):
        more = {"mss": 1300} if name == "mss" else {}
        NAT.services.append(
            service(
                f"{name}-{fam}",
                own_vip(80, fam, fam),
                number,
                protocol,
                "nat",
                server(fam, host),
                BACKEND_MAC[fam],
                backend_port=to,
                **more,
            )
        )
        # The service of any port has an address of its own.
        if name == "any":
            NAT.services[-1]["address"] = own_vip(81, fam, fam)

for fam, back in PAIRS:
    for name, number, to, protocol, pool, more in (
        ("web", 80, 8080, "tcp", POOL_OF_ONE, {}),
        ("dns", 53, 5054, "udp", POOL, {}),
        ("toa", 81, 8081, "tcp", POOL_OF_ONE, {"client_address": "toa"}),
        ("proxy", 82, 8082, "tcp", POOL_OF_ONE, {"client_address": "proxy"}),
        ("mss", 83, 8083, "tcp", POOL_OF_ONE, {"mss": 1300}),
        ("sctp", 5060, 5062, "sctp", POOL_OF_ONE, {}),
    ):
        FULLNAT.services.append(
            service(
                f"{name}-{fam}{back}",
                own_vip(82, fam, back),
                number,
                protocol,
                "fullnat",
                server(back, 31),
                BACKEND_MAC[back],
                backend_port=to,
                pool=pool[back],
                **more,
            )
        )

# One server may be behind services of both kinds.
for fam in FAMILIES:
    FULLNAT.services.append(
        service(
            f"nat-{fam}",
            own_vip(84, fam, fam),
            80,
            "tcp",
            "nat",
            server(fam, 31),
            BACKEND_MAC[fam],
            backend_port=8080,
        )
    )

# Where IPv6 has no smaller MTU to tell of.
NARROW = Config("narrow", "fullnat with the PROXY protocol, over the least MTU.", [port(mtu=1280)])
for fam, back in PAIRS:
    NARROW.services.append(
        service(
            f"proxy-{fam}{back}",
            own_vip(82, fam, back),
            82,
            "tcp",
            "fullnat",
            server(back, 31),
            BACKEND_MAC[back],
            backend_port=8082,
            pool=POOL_OF_ONE[back],
            client_address="proxy",
        )
    )

for name, number, to, protocol, host in (
    ("web", 80, 8080, "tcp", 51),
    ("dns", 53, 5054, "udp", 52),
    ("same", 81, None, "tcp", 53),
    ("sctp", 5060, 5062, "sctp", 54),
    ("any", "any", None, "any", 55),
    ("mss", 82, None, "tcp", 56),
    ("auto", 83, None, "tcp", 57),
):
    # RFC 6052's own prefix, and an operator's.
    more = {"client_prefix": CLIENT_PREFIX if name != "same" else "2001:db8:46::/96"}
    more |= {"mss": {"mss": 1300, "auto": "auto"}[name]} if name in ("mss", "auto") else {}
    address = own_vip(86 if name == "any" else 85, 4, 6)
    head = (name, address, number, protocol, "nat", server(6, host), BACKEND_MAC[6])
    NAT46.services.append(service(*head, backend_port=to, **more))

CONFIGS += [NAT, NAT46, FULLNAT, NARROW]

# One SYN a second, in every mode.
SYN = Config("syn", "Bounds on new connections, in every mode.", [port()])
ONE = {"rate": 1}
SYN.services += services(90, "syn", 80, "tcp", WAYS, syn={4: ONE, 6: ONE})
SYN.services += services(
    91, "client", "any", "any", WAYS[:2], affinity="client", syn={4: ONE, 6: ONE}
)
DROP = ONE | {"above": "drop"}
SYN.services += services(92, "drop", 80, "tcp", WAYS[:1], syn={4: DROP, 6: DROP})
for fam, back in PAIRS:
    head = (server(back, 41), BACKEND_MAC[back])
    if fam == back:
        address = own_vip(93, fam, fam)
        SYN.services.append(
            service(f"nat-{fam}", address, 80, "tcp", "nat", *head, backend_port=8080, syn=ONE)
        )
    address, more = own_vip(94, fam, back), {"pool": POOL_OF_ONE[back], "syn": ONE}
    SYN.services.append(
        service(f"fullnat-{fam}{back}", address, 80, "tcp", "fullnat", *head, **more)
    )
CONFIGS.append(SYN)
