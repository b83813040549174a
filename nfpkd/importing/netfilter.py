"""The words of an iptables rule: as iptables-save prints them, and as people write them.

iptables(8) and iptables-extensions(8) are the source of what is known here; what is not known is kept by its name,
so that whoever reads a rule can tell whether they understood all of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nfpkd.importing.model import InexpressibleError, Opening, parse_ports, parse_protocol, words_of
from nfpkd.rules.model import PortRange, Protocol, Reject

_SPELLINGS = {
    "--append": "-A",
    "--insert": "-I",
    "--delete": "-D",
    "--table": "-t",
    "--protocol": "-p",
    "--proto": "-p",
    "--source": "-s",
    "--src": "-s",
    "--destination": "-d",
    "--dst": "-d",
    "--in-interface": "-i",
    "--out-interface": "-o",
    "--jump": "-j",
    "--match": "-m",
    "--destination-port": "--dport",
    "--destination-ports": "--dports",
    "--source-port": "--sport",
    "--source-ports": "--sports",
    "--ctstate": "--state",
    "--wait": "-w",
}
# These take one word, whatever it looks like; -I and -D may have a number behind theirs.
_WITH_WORD = words_of(
    "-A -I -D -t -p -s -d -i -o -j -m --dport --dports --sport --sports --state --name --seconds --hitcount --mask "
    "--key --tag --window --comment --reject-with --queue-num --queue-balance --to-destination --to-ports"
)
_NUMBERED = frozenset({"-I", "-D"})
_WITHOUT_WORD = words_of("--syn --set --rcheck --update --remove --rsource --rdest --rttl --reap --queue-bypass")
# What says nothing about which packets a rule is for.
_NEUTRAL = frozenset({"-A", "-I", "-t", "-w", "-m", "-j", "--comment"})

_REJECTS = {
    "tcp-reset": Reject.RESET,
    "icmp-admin-prohibited": Reject.ICMP_ADMIN,
    "icmp-host-prohibited": Reject.ICMP_ADMIN,
    "icmp-net-prohibited": Reject.ICMP_ADMIN,
    "icmp6-adm-prohibited": Reject.ICMP_ADMIN,
}


@dataclass(frozen=True, slots=True)
class Words:
    """A rule's options with their words, its matches, and those of its options that a ``!`` inverts."""

    options: dict[str, str]
    matches: frozenset[str]
    inverted: frozenset[str]

    def get(self, option: str) -> str:
        return self.options.get(option, "")

    @property
    def chain(self) -> str:
        return self.get("-A") or self.get("-I").split(" ")[0]

    @property
    def states(self) -> frozenset[str]:
        """The states of connections that the rule is for; none for all."""
        return frozenset(filter(None, self.get("--state").upper().split(",")))

    def find_unknown(self, known: frozenset[str]) -> str:
        """Return what narrows this rule down and is not *known*, for people; nothing if all is."""
        rest = self.options.keys() - known - _NEUTRAL
        return ", ".join(sorted({*rest, *(f"! {option}" for option in self.inverted)}))


def parse_words(words: Sequence[str]) -> Words:
    """Return the rule in *words*, without the name of a program in front; raises InexpressibleError."""
    options: dict[str, str] = {}
    matches: set[str] = set()
    inverted: set[str] = set()
    rest = list(reversed(words))
    negate = False
    while rest:
        word = rest.pop()
        if word == "!":
            negate = True
            continue
        option = _SPELLINGS.get(word, word)
        # What stands in no option's place may be a piece of a key.
        if not re.fullmatch("-[A-Za-z]|--[a-z][a-z0-9-]*", option):
            raise InexpressibleError(
                "has words that belong to no option: leave out what is not iptables' own, and import again"
            )
        value = " ".join(_take_words(option, rest))
        if negate:
            inverted.add(option)
        if option == "-m":
            matches.add(value)
        elif option in options:
            raise InexpressibleError(f"has {option} twice")
        else:
            options[option] = value
        negate = False
    return Words(options, frozenset(matches), frozenset(inverted))


def _take_words(option: str, rest: list[str]) -> list[str]:
    if option in _WITHOUT_WORD:
        return []
    taken = []
    if option in _WITH_WORD:
        if not rest:
            raise InexpressibleError(f"ends behind {option}")
        taken.append(rest.pop())
        if option in _NUMBERED and rest and rest[-1].isdecimal():
            taken.append(rest.pop())
        return taken
    while rest and rest[-1] != "!" and not rest[-1].startswith("-"):
        taken.append(rest.pop())
    return taken


def find_protocols(words: Words) -> tuple[Protocol, ...]:
    """Return the protocol that a rule is for; none for any."""
    text = words.get("-p")
    return () if text in ("", "all", "0") else (parse_protocol(text),)


def find_ports(words: Words) -> tuple[PortRange, ...]:
    """Return the destination ports that a rule is for; none for all."""
    given = words.get("--dport") or words.get("--dports")
    return tuple(parse_ports(text, ":") for text in given.split(",")) if given else ()


def find_opening(words: Words) -> Opening:
    """Return what a rule opens; raises InexpressibleError unless it is ports."""
    if words.chain in ("FORWARD", "OUTPUT"):
        raise InexpressibleError(f"is about the chain {words.chain}; here the ports of this host are guarded")
    ports = find_ports(words)
    if not ports:
        raise InexpressibleError("opens every port; a rule names its ports")
    return Opening(find_protocols(words), ports)


def find_prefix(mask: str) -> int:
    """Return how many bits of an address *mask* keeps."""
    bits = "".join(f"{int(part):08b}" for part in mask.split(".") if re.fullmatch("[0-9]{1,3}", part))
    if not re.fullmatch("(?=.{32}$)1*0*", bits):
        raise InexpressibleError("has a --mask that is no prefix of an address")
    return bits.count("1")


def find_reject(words: Words) -> Reject | None:
    """Return how a rule refuses what it is for; None if it does not."""
    if words.get("-j") == "DROP":
        return Reject.DROP
    if words.get("-j") == "REJECT":
        return _REJECTS.get(words.get("--reject-with"), Reject.ICMP)
    return None
