"""What is done with each hostile input, and what must hold of the result.

A target takes any bytes.  If nfpkd keeps its promises about them, it returns.  If not, it raises
BrokenPromise, or whatever came out of nfpkd that should not have.  Nothing here needs atheris,
so the corpus can be replayed anywhere.  Then all is done with each input that can be; among
millions, what takes longest is done with some.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Protocol
from zlib import crc32

from lab.fuzz.known import KEY_TEXT, KNOCK_PORTS, OPTIONS, OTHER_KEY_TEXT, RULES
from lab.fuzz.promise import promise
from lab.fuzz.readers import make_readers
from lab.fuzz.texts import MARKER, check_problems, hides_marker
from nfpkd.describe import describe_rule, describe_rules
from nfpkd.errors import PacketError, Problem, RulesError, WireError
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.ruleset import compile_ruleset, transaction_to
from nfpkd.knock.wire import PAYLOAD_LENGTH, decode_knock_untrusted, encode_knock
from nfpkd.rules import model
from nfpkd.rules.build import PlacedRule
from nfpkd.rules.lint import find_smells
from nfpkd.rules.loader import load_rules
from nfpkd.rules.model import PortRange, Rule, Secret, TimedKey
from nfpkd.verifier.judge import Judge, Outcome
from nfpkd.verifier.packet import Datagram, decode_datagram_untrusted
from nfpkd.verifier.verifier import Verifier
from support.fake_kernel import FakeKernel


class Target(Protocol):
    """*tried* counts inputs by what became of them, or by what read them."""

    tried: Counter[str]

    def __call__(self, data: bytes) -> None: ...


class Packet:
    """A packet from the queue: decoded, judged, and let go on unless a key made it."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self._verifier = Verifier(Firewall(FakeKernel(), list), OPTIONS)
        self._verifier.enforce(RULES)

    def __call__(self, data: bytes) -> None:
        is_knock = False
        try:
            datagram = decode_datagram_untrusted(data)
        except PacketError:
            self.tried["refused"] += 1
        else:
            self.tried["decoded"] += 1
            _check_datagram(data, datagram)
            is_knock = _is_knock(datagram)
        goes_on = self._verifier.handle(data, 0)
        self._verifier.settle()
        promise(goes_on != is_knock, "knocks are consumed, and nothing else is")


def _check_datagram(packet: bytes, datagram: Datagram) -> None:
    """Find *datagram* in *packet* by other means than the decoder's."""
    source, port, payload = datagram
    if packet[0] >> 4 == 4:
        promise(source == packet[12:16], "an IPv4 source is bytes 12 to 15")
        starts: Iterable[int] = [(packet[0] & 15) * 4]
    else:
        promise(source == packet[8:24], "an IPv6 source is bytes 8 to 23")
        # Extension headers are multiples of 4 bytes long.
        starts = range(40, len(packet) - 7, 4)
    header = struct.pack(">HH", port, 8 + len(payload))
    promise(
        any(packet[at + 2 : at + 6] == header and packet[at + 8 : at + 8 + len(payload)] == payload for at in starts),
        "the payload stands in the packet, whole, behind its own UDP header",
    )


_KEY = KEY_TEXT.encode().ljust(40, b"\0")
_OTHER_KEY = bytes.fromhex(OTHER_KEY_TEXT.removeprefix("0x")).ljust(40, b"\0")


def _is_knock(datagram: Datagram) -> bool:
    """Tell whether a key of the known rules made *datagram*, with nothing but the description of the format."""
    _, port, payload = datagram
    if len(payload) != 56:
        return False
    ports, header = port.to_bytes(2, "big") * 2, payload[:24]
    digested = []
    if header.startswith(b"test"):
        digested = [ports + header + _KEY, header + _KEY]
    elif header.startswith(b"PKD0") and KNOCK_PORTS[0] <= port <= KNOCK_PORTS[1]:
        digested = [ports + header + _OTHER_KEY]
    return any(hashlib.sha256(one).digest() == payload[24:] for one in digested)


class Wire:
    """A payload is taken apart; then, as what a knock is made of, put together, judged, changed and judged again."""

    # key, tag, port, time, random
    _PARTS = struct.Struct(">40s4sHQ12s")

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()

    def __call__(self, data: bytes) -> None:
        for payload in {data, data[:PAYLOAD_LENGTH]}:
            self._take_apart(payload)
        size = self._PARTS.size
        self._make_and_change(data[:size], data[size : size + PAYLOAD_LENGTH])

    def _take_apart(self, payload: bytes) -> None:
        try:
            knock = decode_knock_untrusted(payload)
        except WireError:
            self.tried["refused"] += 1
            promise(len(payload) != PAYLOAD_LENGTH, "what has 56 bytes can be taken apart")
            return
        self.tried["decoded"] += 1
        promise(len(payload) == PAYLOAD_LENGTH, "nothing else can be taken apart")
        promise(knock.header + knock.digest == payload, "nothing is lost")
        promise(payload.startswith(knock.tag + knock.time.to_bytes(8, "little")), "the fields are in their places")

    def _make_and_change(self, parts: bytes, change: bytes) -> None:
        key, tag, port, time, random = self._PARTS.unpack(parts.ljust(self._PARTS.size, b"\0"))
        payload = encode_knock(key, tag, port, time, random)
        knock = decode_knock_untrusted(payload)
        promise((knock.tag, knock.time, knock.header[12:]) == (tag, time, random), "what is made is what is read")
        rule = Rule("any", (TimedKey(Secret(key)),), tag, (PortRange(22, 22),), (model.Protocol.TCP,), skew=None)
        judge = Judge([rule])
        if any(change):
            changed = bytes(a ^ b for a, b in zip(payload, change.ljust(PAYLOAD_LENGTH, b"\0"), strict=True))
            promise(not judge.judge(Datagram(bytes(4), port, changed), 0, 0.0), "a knock that was changed is none")
        promise(not judge.judge(Datagram(bytes(4), port ^ 1, payload), 0, 0.0), "a knock is for one port")
        outcomes = [judge.judge(Datagram(bytes(4), port, payload), 0, 0.0)[0].outcome for _ in range(2)]
        promise(outcomes == [Outcome.ACCEPTED, Outcome.REPLAYED], "a knock is good, once")


# Beyond so many, guarded ports show nothing new and take their time.
_MAX_SERVICES = 2_000
# Of millions of rule files, one in so many gets to the kernel of the tests, which takes longer than all the rest.
_ENFORCED = 8
# A moment for the rules' keys to be good or bad at.
_NOW = 1_800_000_000


class RuleFile:
    """A rule file: read, built, described, looked at for smells, and enforced."""

    def __init__(self, scratch: Path, *, thorough: bool) -> None:
        self.tried: Counter[str] = Counter()
        self._thorough = thorough
        self._directory = scratch / "rules"
        self._directory.mkdir(mode=0o700)
        self._file = self._directory / "x.json"
        self._file.touch(mode=0o600)

    def __call__(self, data: bytes) -> None:
        self._file.write_bytes(data)
        places: list[PlacedRule] = []
        try:
            loaded = load_rules(self._directory, places=places)
        except RulesError as error:
            self.tried["refused"] += 1
            self._check_problems(error.problems, data)
            return
        self.tried["loaded"] += 1
        self._check_problems(loaded.warnings, data)
        said = [*map(describe_rule, loaded.rules), *describe_rules(loaded.rules), repr(loaded.rules)]
        services = sum(1 for _ in islice((s for rule in loaded.rules for s in rule.services()), _MAX_SERVICES))
        if services < _MAX_SERVICES:
            self.tried["compiled"] += 1
            self._check_problems(find_smells(places, now=_NOW, listening=set()), data)
            said.append(json.dumps(transaction_to(compile_ruleset(loaded.rules, OPTIONS), None).commands))
            if self._thorough or crc32(data) % _ENFORCED == 0:
                self.tried["enforced"] += 1
                said.append(_enforce(loaded.rules))
        promise(not hides_marker(data) or MARKER not in "".join(said), "no key is said")

    def _check_problems(self, problems: Iterable[Problem], data: bytes) -> None:
        check_problems(problems, str(self._file), data, hides=hides_marker(data))


def _enforce(rules: tuple[Rule, ...]) -> str:
    """Guard by *rules* and return the kernel's listing; they must be in force by then."""
    kernel = FakeKernel()
    firewall = Firewall(kernel, list)
    firewall.apply(rules, OPTIONS)
    promise(not firewall.apply(rules, OPTIONS).sent, "what is in force is not sent again")
    return str(kernel.list(TABLE))


class State:
    """Whatever else is read: files of nfpkd's own, and what the kernel and other processes say.

    The first line of an input names its reader, the rest is what is read.
    """

    def __init__(self, scratch: Path, *, thorough: bool) -> None:
        self.tried: Counter[str] = Counter()
        self._readers = make_readers(scratch, thorough=thorough)

    def __call__(self, data: bytes) -> None:
        name, _, body = data.partition(b"\n")
        reader = self._readers.get(name.decode(errors="replace"))
        if reader is None:
            self.tried["nobody"] += 1
        else:
            self.tried[name.decode()] += 1
            reader(body)


NAMES = ("packet", "wire", "rules", "state")


def make_target(name: str, scratch: Path, *, thorough: bool = True) -> Target:
    """Return the target *name*, which has its files below *scratch*."""
    match name:
        case "packet":
            return Packet()
        case "wire":
            return Wire()
        case "rules":
            return RuleFile(scratch, thorough=thorough)
    return State(scratch, thorough=thorough)
