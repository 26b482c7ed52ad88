#!/usr/bin/env python3
"""Writes the golden packets: cases.jsonl and the configurations beside this script.

    apt-get install python3-scapy && /usr/bin/python3 make.py [CAPTURE]

The capture, if one is asked for, has the frames that have to leave, to be looked at.

A case is a train of frames with, for each, the verdict that it has to get, and the exact frames that
have to leave. Golden means that another hand made them: scapy, from the documentation of what Weir
does. If a case fails, first ask the documentation who is right.

topics/ has the cases, kit/ what they are written in. To add a forwarding mode: give it a line in
kit/ways.py's WAYS, a rule in kit/leaving.py's `forwarded`, and its overhead.
"""

import sys

from kit import CASES, CONFIGS, Ether, write
from scapy.utils import wrpcap

# Each adds its cases; in this order, because client ports and identifications are counted.
from topics import headers, bad, kernel, match, protocols  # isort: skip
from topics import fragments, icmp, too_big, mss, sources  # isort: skip
from topics import nat, fullnat, fullnat_icmp, client_address  # isort: skip
from topics import syn, fullnat_sctp, mss_fragments, narrow, nat46  # isort: skip

write(CONFIGS)
if len(sys.argv) > 1:
    wrpcap(
        sys.argv[1],
        [
            Ether(out.bytes)
            for case in CASES
            for step in case.steps
            for out in step.outs
            if not case.flags.get("bad")
        ],
    )
print(f"{len(CASES)} cases, {sum(len(case.steps) for case in CASES)} frames")
