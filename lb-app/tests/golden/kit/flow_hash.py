"""The flow hash: rapidhash v3 nano, avalanche and protected (lb-core/src/flow_hash.rs)."""

import ipaddress
import struct
from dataclasses import dataclass

HASH_KEY = b"weir test vector"
MASK = (1 << 64) - 1
SECRETS = (
    0x2D358DCCAA6C78A5,
    0x8BB84B93962EACC9,
    0x4B33A62ED433D4A3,
    0x4D5A2DA51DE1AA47,
    0xA0761D6478BD642F,
    0xE7037ED1A0B428DB,
    0x90ED1765281C388C,
)


def mix(a, b):
    product = a * b
    return (product & MASK) ^ (product >> 64)


def mum_protected(a, b):
    product = a * b
    return a ^ (product & MASK), b ^ (product >> 64)


def mix_protected(a, b):
    low, high = mum_protected(a, b)
    return low ^ high


def premix(seed, i):
    seed ^= mix(seed ^ SECRETS[2], SECRETS[i])
    for part, bit in ((0xFFFF << 48, 63), (0xFFFF << 24, 31), (0xFFFF, 0)):
        if seed & part == 0:
            seed |= 1 << bit
    return seed


def secrets_of(seed):
    seed, secrets = premix(seed, 0), []
    for i in range(7):
        seed = premix(seed, i)
        secrets.append(seed)
    return secrets


def rapidhash_nano(data, seed, secrets):
    word = lambda at: struct.unpack_from("<Q", data, at)[0]
    assert 8 <= len(data) <= 48, "what flows need"
    if len(data) <= 16:
        seed ^= len(data)
        a, b = word(0), word(len(data) - 8)
    else:
        seed = mix_protected(word(0) ^ secrets[2], word(8) ^ seed)
        if len(data) > 32:
            seed = mix_protected(word(16) ^ secrets[2], word(24) ^ seed)
        a, b = word(len(data) - 16) ^ len(data), word(len(data) - 8)
    a, b = mum_protected(a ^ secrets[1], b ^ seed)
    return mix_protected(a ^ 0xAAAAAAAAAAAAAAAA, b ^ secrets[1] ^ len(data))


KEY_SECRETS = secrets_of(struct.unpack("<Q", HASH_KEY[:8])[0])
KEY_SEED = struct.unpack("<Q", HASH_KEY[8:])[0]


@dataclass(frozen=True)
class Flow:
    """Client to service."""

    src: str
    dst: str
    sport: int
    dport: int
    proto: int

    def hash(self, with_ports=True):
        ports = (self.sport, self.dport) if with_ports else (0, 0)
        data = packed(self.src) + packed(self.dst) + struct.pack("!HHBxxx", *ports, self.proto)
        return rapidhash_nano(data, KEY_SEED, KEY_SECRETS)


def packed(address):
    return ipaddress.ip_address(address).packed


for flow, with_ports, known in (
    (Flow("198.51.100.7", "10.0.0.100", 40000, 80, 6), True, 18_253_214_449_191_798_085),
    (Flow("198.51.100.7", "10.0.0.100", 40000, 80, 6), False, 11_622_113_520_215_061_198),
    (Flow("2001:db8::7", "fd00::100", 40000, 80, 6), True, 6_587_173_234_263_165_396),
    (Flow("2001:db8::7", "fd00::100", 40000, 80, 6), False, 12_825_226_777_488_794_591),
):
    assert flow.hash(with_ports) == known, "the vectors of flow_hash.rs"
