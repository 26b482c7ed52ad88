"""What the topics are written in: the flow hash, frames, configurations, and what has to leave for
what comes in. All of it from the documentation, with scapy; nothing is taken from Weir's output.
"""

import ipaddress
import itertools
import struct

from scapy.contrib.igmp import IGMP
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_NOP, IPOption_RR
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrRouting,
)
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import ARP, GRE, Dot1AD, Dot1Q
from scapy.layers.sctp import (
    SCTPChunkAbort,
    SCTPChunkCookieAck,
    SCTPChunkCookieEcho,
    SCTPChunkData,
    SCTPChunkInit,
    SCTPChunkInitAck,
    SCTPChunkSACK,
    SCTPChunkShutdown,
    SCTPChunkShutdownAck,
    SCTPChunkShutdownComplete,
)
from scapy.packet import Raw

from .case import *
from .common import *
from .config import *
from .files import *
from .flow_hash import *
from .frames import *
from .leaving import *
from .open import *
from .packets import *
from .translated import *
from .translators import *
from .ways import *
