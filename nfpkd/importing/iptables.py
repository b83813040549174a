"""ipt_pkd's rules, from what iptables-save prints or from a script's iptables lines.

ipt_pkd's own options are --key, --tag (PKD0 if not given) and --window, which is not how long something is open, but
by how much the clocks may differ: 10 if not given, and 0 for no check.  (From the README of 1.13, and the source of
its iptables extension as of 1.4, which prints keys and tags as hex.)  How long and what a knock opens is said by other
rules, which ask the list that the knock's rule fills: ``-m recent --set --name X`` and ``--rcheck --name X --seconds
N``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from nfpkd.importing.model import (
    OPEN_ENDED_WINDOW,
    Draft,
    Fields,
    Imported,
    InexpressibleError,
    Opening,
    Remark,
    describe_openings,
    make_name,
    order_fields,
    words_of,
)
from nfpkd.importing.netfilter import (
    Words,
    find_opening,
    find_ports,
    find_prefix,
    find_protocols,
    find_reject,
    parse_words,
)
from nfpkd.importing.secret import read_key, read_tag
from nfpkd.rules.model import DEFAULT_SKEW, DEFAULT_TAG, PortRange, Reject

RULE_LINE = re.compile(r"(\[\d+:\d+\]\s+)?-[AI]\s|(sudo\s+)?(/\S*/)?ip6?tables(-nft|-legacy)?\s")
PKD = re.compile(r"(-m|--match)\s+pkd\b")

_KNOCK_OPTIONS = words_of("-p --key --tag --window --set --update --name --mask --rsource -s --dport --dports")
# Where a rule is for one of this host's addresses or interfaces, nfpkd's is for all of them.
_PLACE_OPTIONS = frozenset({"-i", "-d"})
_OPEN_OPTIONS = words_of(
    "-p -s --dport --dports --state --syn --rcheck --update --seconds --hitcount --reap --name --mask --rsource "
    "--to-destination --to-ports"
)
_REFUSE_OPTIONS = words_of("-p --dport --dports --state --syn --reject-with")


class _Rule(NamedTuple):
    line: int
    table: str
    words: Words


class _Save(NamedTuple):
    """The rules that have to do with knocks; those that ask a list by its name."""

    knocks: list[_Rule]
    asking: dict[str, list[_Rule]]
    queueing: list[_Rule]
    refusing: list[_Rule]


class _Terms(NamedTuple):
    """On what terms a line opens its ports, besides which they are."""

    window: int
    extend: bool
    prefix: int
    sources: str
    reject: Reject


def read(text: str) -> Imported:
    """Return the rules of ipt_pkd in *text*."""
    remarks: list[Remark] = []
    unread: list[tuple[int, str, str]] = []
    save = _sort([rule for rule in _find_rules(text, unread) if rule.words.chain])
    drafts: list[Draft] = []
    for knock in save.knocks:
        try:
            drafts.extend(_import_knock(knock, save, remarks))
        except InexpressibleError as error:
            remarks.append(Remark(knock.line, f"not imported: {error}"))
    lists = {_list_of(knock.words) for knock in save.knocks}
    for number, line, reason in unread:
        name = re.search(r"--name\s+(\S+)", line)
        if PKD.search(line) or (name and name[1] in lists):
            remarks.append(Remark(number, f"not imported: {reason}"))
    remarks.extend(Remark(rule.line, _explain_queue(rule.words), left_out=False) for rule in save.queueing)
    # Several knocks may fill one list; what is said of its lines is said once.
    return Imported(tuple(drafts), tuple(dict.fromkeys(remarks)))


def _sort(rules: Iterable[_Rule]) -> _Save:
    save = _Save([], {}, [], [])
    for rule in rules:
        words = rule.words
        if "pkd" in words.matches:
            save.knocks.append(rule)
        elif words.options.keys() & {"--rcheck", "--update", "--remove"}:
            save.asking.setdefault(_list_of(words), []).append(rule)
        elif words.get("-j") == "NFQUEUE":
            save.queueing.append(rule)
        elif rule.table == "filter" and _refuses_strangers(words):
            save.refusing.append(rule)
    return save


def _list_of(words: Words) -> str:
    return words.get("--name") or "DEFAULT"


def _refuses_strangers(words: Words) -> bool:
    return (
        find_reject(words) is not None
        and not words.find_unknown(_REFUSE_OPTIONS | _PLACE_OPTIONS)
        and (not words.states or "NEW" in words.states)
    )


def _find_rules(text: str, unread: list[tuple[int, str, str]]) -> Iterator[_Rule]:
    """Yield the rules of *text*; add the number, the text and the fault of lines that cannot be read to *unread*."""
    table = "filter"
    for number, line in _join_lines(text):
        if line.startswith("*"):
            table = line[1:].strip()
        elif RULE_LINE.match(line):
            try:
                words = parse_words(_split(line))
            except InexpressibleError as error:
                unread.append((number, line, f"the rule {error}"))
            else:
                yield _Rule(number, words.get("-t") or table, words)
        elif not line.startswith("#"):
            unread.append((number, line, "not a line of iptables; import what iptables-save prints"))


def _join_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line, with those that a backslash continues, and its number."""
    whole, first = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        first = first if whole else number
        if line.rstrip("\r").endswith("\\"):
            whole += line.rstrip("\r")[:-1] + " "
            continue
        yield first, (whole + line).strip()
        whole = ""
    if whole:
        yield first, whole.strip()


def _split(line: str) -> list[str]:
    try:
        words = shlex.split(line)
    except ValueError:
        raise InexpressibleError("has a quotation that does not end") from None
    if line.startswith("["):
        return words[1:]
    if line.startswith("-"):
        return words
    if re.search("[$`]", line):
        raise InexpressibleError("has a shell's variable in it: import what iptables-save prints")
    return words[2:] if words[0] == "sudo" else words[1:]


def _explain_queue(words: Words) -> str:
    queue = words.get("--queue-num") or words.get("--queue-balance") or "0"
    return (
        f"no longer needed if queue {queue} is nf-pkd's: remove this rule, nfpkd makes its own; "
        'what nf-pkd opens stands in its rule files ("nfpkd import /etc/nf-pkd/actions.d")'
    )


def _import_knock(knock: _Rule, save: _Save, remarks: list[Remark]) -> Iterator[Draft]:
    """Yield the rules that a line with ``-m pkd`` and the lines that ask its list amount to."""
    words = knock.words
    if "--set" not in words.options and "--update" not in words.options:
        raise InexpressibleError(
            'the knock fills no list ("-m recent --set --name X") that other rules could open a port by'
        )
    fields = _read_knock(knock, remarks)
    name = _list_of(words)
    found: dict[_Terms, list[Opening]] = {}
    for rule in save.asking.get(name, ()):
        try:
            for terms, opening in _read_asking(rule, words, save.refusing, remarks):
                found.setdefault(terms, []).append(opening)
        except InexpressibleError as error:
            remarks.append(Remark(rule.line, f"not imported: the rule {error}"))
    if not found:
        raise InexpressibleError(f'no rule opens a port to the list {name} ("-m recent --rcheck --name {name}")')
    for terms, openings in found.items():
        for opened in describe_openings(openings):
            yield Draft(knock.line, order_fields({"name": make_name(name)} | fields | opened | _describe_terms(terms)))


def _read_knock(knock: _Rule, remarks: list[Remark]) -> Fields:
    words = knock.words
    unknown = words.find_unknown(_KNOCK_OPTIONS | _PLACE_OPTIONS | {"--limit", "--limit-burst"})
    if unknown:
        raise InexpressibleError(f"the rule has conditions that no knock can have here: {unknown}")
    if words.get("-p").lower() not in ("", "udp", "17", "all", "0"):
        raise InexpressibleError("a knock is UDP")
    if "--key" not in words.options:
        raise InexpressibleError("the rule has no --key")
    _remark_places(knock, remarks)
    if "--limit" in words.options:
        remarks.append(Remark(knock.line, '--limit is not taken over: give the rule a "rate" instead'))
    fields: Fields = {"tag": read_tag(words.get("--tag") or DEFAULT_TAG), "key": read_key(words.get("--key"))}
    if "--window" in words.options:
        seconds = _read_number(words, "--window")
        if seconds == 0:
            fields["skew"] = -1
        elif seconds != DEFAULT_SKEW:
            fields["skew"] = seconds
    ports = find_ports(words)
    if ports:
        (described,) = describe_openings([Opening((), ports)])
        fields["knock-port"] = described["port"]
    if "--comment" in words.options:
        # iptables-save puts a backslash in front of every quote.
        fields["description"] = words.get("--comment").replace("\\'", "'")
    return fields


def _read_asking(
    rule: _Rule, knock: Words, refusing: Iterable[_Rule], remarks: list[Remark]
) -> Iterator[tuple[_Terms, Opening]]:
    """Yield what a rule that asks the list opens, and on what terms."""
    words = rule.words
    if "--remove" in words.options:
        raise InexpressibleError('takes an address from the list; "once" lets in one connection for a knock')
    if words.get("-j") not in ("ACCEPT", "DNAT", "REDIRECT"):
        raise InexpressibleError("asks the list, but does not ACCEPT: add by hand what it is there for")
    if words.states and "NEW" not in words.states:
        raise InexpressibleError("limits how long sessions last; here they go on until they end by themselves")
    unknown = words.find_unknown(_OPEN_OPTIONS | _PLACE_OPTIONS)
    if unknown:
        raise InexpressibleError(f"has conditions that no rule can have here: {unknown}")
    opening = find_opening(words)
    sources = {text for text in (words.get("-s"), knock.get("-s")) if text}
    if len(sources) > 1:
        raise InexpressibleError("is for other sources (-s) than the knock")
    prefix = find_prefix(words.get("--mask") or "255.255.255.255")
    if "--seconds" in words.options:
        window = _read_number(words, "--seconds")
    else:
        window = OPEN_ENDED_WINDOW
        text = f"without --seconds it opens until the list forgets: here for {window} seconds; set the window"
        remarks.append(Remark(rule.line, text, left_out=False))
    _remark_places(rule, remarks)
    if words.get("--hitcount") not in ("", "0", "1"):
        remarks.append(Remark(rule.line, "--hitcount is not taken over: one knock opens"))
    if words.get("-j") != "ACCEPT":
        text = (
            "forwards, which a rule does not: keep this line without its -m recent; the port is guarded in front of it"
        )
        remarks.append(Remark(rule.line, text))
    for ports in opening.ports:
        reject = _find_reject(opening._replace(ports=(ports,)), words.chain, refusing)
        terms = _Terms(window, "--update" in words.options, prefix, "".join(sources), reject)
        yield terms, opening._replace(ports=(ports,))


def _remark_places(rule: _Rule, remarks: list[Remark]) -> None:
    places = sorted(rule.words.options.keys() & _PLACE_OPTIONS)
    if places:
        text = (
            f"{' and '.join(places)} not taken over: the rule is for every interface and address of this host; "
            '"interfaces" would leave the others unguarded'
        )
        remarks.append(Remark(rule.line, text, left_out=False))


def _read_number(words: Words, option: str) -> int:
    text = words.get(option)
    if not re.fullmatch("[0-9]{1,10}", text):
        raise InexpressibleError(f"has no number behind {option}")
    return int(text)


def _find_reject(opening: Opening, chain: str, refusing: Iterable[_Rule]) -> Reject:
    """Return how the ports are refused to others: by the first rule that does, or in silence."""
    for rule in refusing:
        if rule.words.chain not in (chain, "INPUT"):
            continue
        try:
            protocols, ports = find_protocols(rule.words), find_ports(rule.words)
        except InexpressibleError:
            continue
        if (not protocols or protocols == opening.protocols) and (not ports or _hold(ports, opening.ports[0])):
            return find_reject(rule.words) or Reject.DROP
    return Reject.DROP


def _hold(wide: Iterable[PortRange], narrow: PortRange) -> bool:
    return any(ports.first <= narrow.first and narrow.last <= ports.last for ports in wide)


def _describe_terms(terms: _Terms) -> Fields:
    fields: Fields = {"window": terms.window}
    if terms.reject is not Reject.DROP:
        fields["reject"] = terms.reject.value
    if terms.extend:
        fields["extend"] = True
    if terms.prefix != 32:
        fields["grant"] = {"ipv4": terms.prefix}
    if terms.sources:
        fields["from"] = terms.sources.split(",")
    return fields
