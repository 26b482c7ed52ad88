"""Cases: frames that come in, what is said of each, and what leaves."""

from dataclasses import dataclass

from .config import Config
from .leaving import forwarded, hash_of, too_big


@dataclass
class Step:
    """A frame that comes in, what is said of it, and what leaves for it. The frame is an Out where
    it depends on what left before.
    """

    frame: bytes
    expect: tuple
    outs: list
    at: float = 0.0


@dataclass
class Case:
    name: str
    config: Config
    steps: list
    order: list
    flags: dict


CASES = []


def case(name, config, *steps, order=None, **flags):
    """Adds a case. `order` is the order in which the frames leave, by their place among `steps`.

    Flags: `bad` (some input is not a good packet, so the output need not be one), `rewrites` (the
    packet may change inside its outer header).
    """
    assert name not in {case.name for case in CASES}, name
    for i, step in enumerate(steps):
        if step.at == 0:
            step.at = i * 0.001
    order = list(range(len(steps))) if order is None else order
    assert sorted(order) == list(range(len(steps)))
    CASES.append(Case(name, config, list(steps), order, flags))


class World:
    """Steps of one configuration."""

    def __init__(self, config):
        self.config = config

    def send(self, name, frame, flow, rule="flow", at=0.0, result=None):
        """`frame` goes to the backend of the service. `result` are other bytes of the frame that
        is forwarded, if it is changed on the way."""
        service = self.config.service(name)
        flow_hash = hash_of(service, flow)
        outs = forwarded(self.config, service, result or frame, flow_hash)
        slot = flow_hash * service["slots"] >> 64
        backend, port = service["backends"][0]["address"], self.config.out_port(service)["name"]
        expect = ("send", rule, name, slot, backend, port)
        return Step(frame, expect, outs, at)

    def answer(self, name, frame, at=0.0):
        """`frame` is answered: too big for the service's way."""
        out = too_big(self.config, self.config.service(name), frame)
        return Step(frame, ("answer", "too_big", name), [out], at)


def punt(frame, at=0.0):
    """`frame` is the kernel's."""
    return Step(frame, ("punt",), [], at)


def drop(reason, frame, at=0.0, service=None):
    """`frame` is dropped; for one of the reasons, if there are several."""
    reasons = reason if isinstance(reason, str) else "|".join(reason)
    return Step(frame, ("drop", reasons, *([service] if service else [])), [], at)
