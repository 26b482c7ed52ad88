"""Cases as they are written."""

import json
from pathlib import Path

from .case import CASES
from .frames import PATTERN
from .leaving import Out

HERE = Path(__file__).resolve().parent.parent


def shared_tail(data, frames):
    """The longest end of `data` that is some frame's: (length, which frame, its start there)."""
    best = (0, 0, 0)
    for i, frame in enumerate(frames):
        low, high = 0, min(len(data), len(frame))
        while low < high:  # if an end is in the frame, so are all that are shorter
            middle = (low + high + 1) // 2
            low, high = (middle, high) if data[-middle:] in frame else (low, middle - 1)
        best = max(best, (low, i, frame.find(data[len(data) - low :])), key=lambda x: (x[0], -x[1]))
    return best


def text(out, frames=()):
    """Hex; stretches of PATTERN as <start:length>, open bytes as {name:length}, checksums that depend
    on them as {=names:base}, and an end that is also in one of `frames` as (frame:start:length),
    frames counted from 0.
    """
    data, wild = out.bytes, {at: (length, name) for at, length, name in out.wild}
    parts, at, tail = [], 0, ""
    length, i, start = (0, 0, 0) if wild else shared_tail(data, frames)
    if length >= 8:
        data, tail = data[: len(data) - length], f"({i}:{start}:{length})"
    while at < len(data):
        if at in wild:
            length, name = wild[at]
            what = data[at : at + length].hex() if name.startswith("=") else length
            parts.append(f"{{{name}:{what}}}")
            at += length
            continue
        limit = min((w for w in wild if w > at), default=len(data))
        start = PATTERN.find(data[at : at + 12]) if limit - at >= 12 else -1
        if start >= 0:
            length = 12
            while (
                at + length < limit
                and PATTERN[start + length : start + length + 1]
                == data[at + length : at + length + 1]
            ):
                length += 1
            parts.append(f"<{start}:{length}>")
            at += length
        else:
            parts.append(f"{data[at]:02x}")
            at += 1
    return "".join(parts) + tail


def verdict(step):
    """In words: "send RULE SERVICE SLOT BACKEND PORT", behind which "xN" if N frames leave; "punt";
    "drop REASON|REASON", behind which the service, if it has to be told; "answer REASON SERVICE".
    """
    many = [f"x{len(step.outs)}"] if len(step.outs) > 1 else []
    return " ".join([*map(str, step.expect), *many])


def record(case):
    outs = []
    names = iter("abcdefghijklmnopqrstuvwxyz")
    # What has open bytes is not referred to.
    known = [b"" if isinstance(step.frame, Out) else step.frame for step in case.steps]
    for place in case.order:
        step = case.steps[place]
        # Each datagram that is cut has a name of its own for its id.
        is_cut = any(name == "a" for out in step.outs for _, _, name in out.wild)
        mine = next(names) if is_cut else None
        for out in step.outs:
            named = tuple(
                (at, length, mine if name == "a" else name) for at, length, name in out.wild
            )
            outs.append(text(Out(out.bytes, named), known))
    frames = []
    for i, step in enumerate(case.steps):
        frame = step.frame if isinstance(step.frame, Out) else Out(step.frame)
        frames.append([round(step.at * 1_000_000), text(frame, known[:i])])
    record = {"name": case.name, "config": case.config.file} | case.flags
    return record | {"in": frames, "verdicts": list(map(verdict, case.steps)), "out": outs}


def write(configs):
    for config in configs:
        (HERE / config.file).write_text(config.toml())
    with (HERE / "cases.jsonl").open("w") as file:
        for case in CASES:
            file.write(json.dumps(record(case), separators=(",", ":")) + "\n")
