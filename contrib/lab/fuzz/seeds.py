"""The seeds that are bytes: packets and knocks.  ``python -m lab.fuzz.seeds`` writes them into the corpus.

Those that are text, and those that a kernel or SQLite wrote, stand there as they are.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

from lab.fuzz.known import KEY_TEXT, KNOCK_PORTS, OPTIONS, OTHER_KEY_TEXT, RULES, VECTOR_PORT
from nfpkd.firewall import layout
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.ruleset import make_grants
from nfpkd.knock.wire import encode_knock
from nfpkd.rules.model import parse_key, parse_tag
from support.fake_kernel import FakeKernel

CORPUS = Path(__file__).parent / "corpus"

# WIRE.md: the time in both of its vectors, whose random part is zero.
_VECTOR_TIME = 1539746929
_UDP, _TCP, _ICMP, _HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 17, 6, 1, 0, 43, 44, 51, 60


def knocks() -> dict[str, bytes]:
    """Return payloads by name; WIRE.md's two vectors come first."""
    key, tag = parse_key(KEY_TEXT).reveal(), parse_tag("test")
    other = parse_key(OTHER_KEY_TEXT).reveal()
    made = encode_knock(key, tag, VECTOR_PORT, _VECTOR_TIME, bytes(12))
    old = encode_knock(key, tag, VECTOR_PORT, _VECTOR_TIME, bytes(12), old=True)
    # As the target "wire" reads it: the makings of a knock, and what to change of it.
    makings = struct.pack(">40s4sHQ12s", key, tag, VECTOR_PORT, _VECTOR_TIME, bytes(12))
    return {
        "vector": made,
        "vector-old": old,
        "other-key": encode_knock(other, parse_tag("PKD0"), KNOCK_PORTS[0], 2**64 - 1, b"\xff" * 12),
        # Good for the digest, and for none of the ports where it is heard.
        "other-key-elsewhere": encode_knock(other, parse_tag("PKD0"), KNOCK_PORTS[1] + 1, _VECTOR_TIME, bytes(12)),
        "cut-off": made[:11],
        "one-byte-more": made + b"\0",
        "empty": b"",
        "changed-tag": makings + b"\1",
        "changed-time": makings + bytes(4) + b"\1",
        "changed-digest": makings + bytes(55) + b"\x80",
    }


def packets() -> dict[str, bytes]:
    """Return packets, from their IP header on, by name."""
    knock = knocks()
    vector = _udp(knock["vector"])
    return {
        "ipv4-knock": _ipv4(vector),
        "ipv4-knock-old": _ipv4(_udp(knock["vector-old"])),
        "ipv4-other-key": _ipv4(_udp(knock["other-key"], KNOCK_PORTS[0])),
        "ipv4-other-key-elsewhere": _ipv4(_udp(knock["other-key-elsewhere"], KNOCK_PORTS[1] + 1)),
        "ipv4-options": _ipv4(vector, options=b"\x07\x27\x04" + bytes(37)),
        "ipv4-trailer": _ipv4(vector) + bytes(6),
        "ipv4-fragment": _ipv4(vector, fragment=0x2000),
        "ipv4-fragment-last": _ipv4(vector, fragment=0x0001),
        "ipv4-tcp": _ipv4(struct.pack(">HHIIBBHHH", 40000, 22, 1, 0, 0x50, 2, 1024, 0, 0), protocol=_TCP),
        "ipv4-icmp": _ipv4(b"\x03\x03" + bytes(6) + _ipv4(vector)[:28], protocol=_ICMP),
        "ipv4-udp-length-7": _ipv4(_udp(knock["vector"], length=7)),
        "ipv4-udp-length-65535": _ipv4(_udp(knock["vector"], length=65535)),
        "ipv4-short-header": b"\x44" + _ipv4(vector)[1:],
        "ipv4-cut-off": _ipv4(vector)[:27],
        "ipv6-knock": _ipv6(vector, []),
        "ipv6-hop-by-hop": _ipv6(vector, [(_HOP_BY_HOP, bytes(6))]),
        "ipv6-all-headers": _ipv6(
            vector,
            [(_HOP_BY_HOP, bytes(6)), (_DESTINATION, bytes(14)), (_ROUTING, bytes(22)), (_AUTHENTICATION, bytes(22))],
        ),
        "ipv6-fragment": _ipv6(vector, [(_HOP_BY_HOP, bytes(6)), (_FRAGMENT, bytes(6))]),
        "ipv6-circle": _ipv6(b"", [(_HOP_BY_HOP, bytes(6)), (_DESTINATION, bytes(6))] * 8)[:-1],
        "ipv6-cut-off": _ipv6(vector, [(_HOP_BY_HOP, bytes(6))])[:47],
        "no-ip": b"\x00" * 28,
    }


def table() -> bytes:
    """Return a listing of our table as this version of nfpkd makes it, with grants, but without what is not read.

    It is not in the corpus, because it is another one with each change of the table's layout.
    """
    kernel = FakeKernel()
    firewall = Firewall(kernel, list)
    firewall.apply(RULES, OPTIONS)
    for rule in RULES:
        firewall.grant(list(make_grants(rule, "192.0.2.1", rule.window)))
    listing = kernel.list(TABLE) or []
    for entry in listing:
        for kind, described in entry.items():
            if kind == "rule" and described["chain"] not in (layout.TAGS, layout.VERIFY):
                described["expr"] = []
            for field in ("family", "table", "type", "flags", "size", "handle", "timeout", "map"):
                described.pop(field, None)
    return json.dumps(listing, separators=(",", ":")).encode()


def _udp(payload: bytes, port: int = VECTOR_PORT, length: int | None = None) -> bytes:
    return struct.pack(">HHHH", 40000, port, 8 + len(payload) if length is None else length, 0) + payload


def _ipv4(inner: bytes, *, options: bytes = b"", fragment: int = 0x4000, protocol: int = _UDP) -> bytes:
    words = 5 + len(options) // 4
    total = 4 * words + len(inner)
    addresses = ip_address("192.0.2.2").packed + ip_address("192.0.2.1").packed
    return struct.pack(">BBHHHBBH", 0x40 | words, 0, total, 1, fragment, 64, protocol, 0) + addresses + options + inner


def _ipv6(inner: bytes, chain: Sequence[tuple[int, bytes]]) -> bytes:
    """*chain* is the extension headers: the type of each, and its bytes behind the first two."""
    extensions = b"".join(_extensions(chain))
    first = chain[0][0] if chain else _UDP
    addresses = ip_address("2001:db8::2").packed + ip_address("2001:db8::1").packed
    return struct.pack(">IHBB", 6 << 28, len(extensions) + len(inner), first, 64) + addresses + extensions + inner


def _extensions(chain: Sequence[tuple[int, bytes]]) -> Iterator[bytes]:
    for number, (kind, rest) in enumerate(chain, 1):
        following = chain[number][0] if number < len(chain) else _UDP
        size = len(rest) + 2
        yield bytes([following, size // 4 - 2 if kind == _AUTHENTICATION else size // 8 - 1]) + rest


def main() -> None:
    for target, seeds in (("packet", packets()), ("wire", knocks())):
        for name, seed in seeds.items():
            (CORPUS / target / name).write_bytes(seed)


if __name__ == "__main__":
    main()
