"""Configurations, which are written as TOML files."""

import ipaddress
import json
from dataclasses import dataclass, field

from .flow_hash import HASH_KEY
from .frames import OUR_MAC


@dataclass
class Config:
    """One TOML file beside this one, which is written from it."""

    name: str
    about: str
    ports: list
    services: list = field(default_factory=list)

    @property
    def file(self):
        return f"{self.name}.toml"

    def service(self, name):
        return next(service for service in self.services if service["name"] == name)

    def out_port(self, service):
        """The port that frames to the service's backend leave by."""
        backend = service["backends"][0]
        if "interface" in backend:
            return next(port for port in self.ports if port["name"] == backend["interface"])
        address = ipaddress.ip_address(backend["address"])
        for port in self.ports:
            if any(address in ipaddress.ip_interface(a).network for a in port["addresses"]):
                return port
        return self.ports[0]

    def toml(self):
        def value(of):
            if isinstance(of, bool):
                return str(of).lower()
            if isinstance(of, dict):
                return "{ " + ", ".join(f"{k} = {value(v)}" for k, v in of.items()) + " }"
            if isinstance(of, list):
                return "[" + ", ".join(map(value, of)) + "]"
            return json.dumps(of)

        lines = [f"# {self.about} Written by make.py.", "", "[site]"]
        lines.append(f'hash_key = "{HASH_KEY.hex()}"')
        for kind, tables in (("port", self.ports), ("service", self.services)):
            for table in tables:
                lines += ["", f"[[{kind}]]"]
                lines += [f"{key} = {value(of)}" for key, of in table.items()]
        return "\n".join(lines) + "\n"


def port(name="lan0", mtu=1500, mac=OUR_MAC, net="10.0.0", net6="fd00", **more):
    addresses = [f"{net}.2/24", f"{net6}::2/64"]
    return {
        "name": name,
        "device": {"lan0": "net_null0", "wan0": "net_null1"}[name],
        "addresses": addresses,
        "mac": mac,
        "mtu": mtu,
    } | more


def service(
    name, address, port, protocol, forward, backend, mac, interface=None, backend_port=None, **more
):
    """A service with one backend, so that what is chosen does not depend on the lookup table."""
    backend = {"address": backend, "mac": mac}
    if backend_port:
        backend["port"] = backend_port
    if interface:
        backend["interface"] = interface
    head = {"name": name, "address": address, "port": port, "protocol": protocol}
    # Few slots: building tables would otherwise take most of the suite's time.
    return head | {"forward": forward, "slots": 251} | more | {"backends": [backend]}
