"""From a parsed rule file to rules: defaults, what a schema cannot say, and contradictions between rules."""

from __future__ import annotations

import ipaddress
import json
from datetime import datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.errors import Problem, RulesError
from nfpkd.rules.build import ANY_PROTOCOL, BuiltFile, build_rules, find_conflicts
from nfpkd.rules.model import (
    MAX_PORTS_PER_RULE,
    NO_TRIGGER,
    PortRange,
    Prefixes,
    Protocol,
    Rate,
    Reject,
    Rule,
    Secret,
    TimedKey,
    Trigger,
)
from nfpkd.rules.positions import Document
from nfpkd.rules.schema import load_schema
from support.strategies import json_values

SSH = {"name": "ssh", "key": "k", "port": 22}
BARE = {"name": "bare", "key": "k"}
NEW_YEAR = 1_798_761_600  # 2027-01-01T00:00:00Z


def a_key(text: bytes) -> Secret:
    return Secret(text.ljust(40, b"\0"))


def build(*rules: dict[str, object], name: str = "rules.json") -> BuiltFile:
    return build_rules(Document(name, json.dumps(rules)))


def build_one(**fields: object) -> Rule:
    ((placed,), _) = build({**SSH, **fields})
    return placed.rule


def problem_at(rule: dict[str, object], start: str) -> str:
    """Return the message of the only fault of *rule*, which must be found where *start* begins."""
    text = "[" + json.dumps(rule, indent=1) + "]"
    (problem,) = problems_of(text)
    assert text.count(start) == 1
    offset = text.index(start)
    line = text.count("\n", 0, offset) + 1
    assert (problem.path, problem.line) == ("rules.json", line)
    assert problem.column == offset - text.rfind("\n", 0, offset)
    return problem.message


def problems_of(text: str) -> tuple[Problem, ...]:
    with pytest.raises(RulesError) as caught:
        build_rules(Document("rules.json", text))
    return caught.value.problems


def conflicts(*rules: dict[str, object]) -> list[Problem]:
    return list(find_conflicts(build(*rules).rules))


def test_a_minimal_rule_gets_the_defaults() -> None:
    assert build_one() == Rule(
        name="ssh",
        keys=(TimedKey(a_key(b"k")),),
        tag=b"PKD0",
        ports=(PortRange(22, 22),),
        protocols=(Protocol.TCP, Protocol.UDP, Protocol.DCCP, Protocol.SCTP, Protocol.UDPLITE),
        window=60,
        skew=10,
        reject=Reject.DROP,
        old=False,
        description="",
        knock_ports=(),
        rate=Rate(knocks=1, per=5, burst=1),
        sources=(),
        prefixes=Prefixes(ipv4=32, ipv6=128),
        extend=False,
        once=False,
        interfaces=(),
        trigger=Trigger(command=(), close_command=(), user="nobody", timeout=30),
    )


def test_every_field_arrives() -> None:
    fields = {
        "name": "web",
        "key": "0xabcd",
        "tag": "0x01",
        "port": 80,
        "protocol": "udp",
        "window": 5,
        "skew": 3,
        "reject": "reset",
        "old": True,
        "description": "the web, née gopher",
        "not-before": "2027-01-01T00:00:00Z",
        "not-after": "2027-01-01T00:00:01Z",
        "knock-port": [1000, "2000-2001"],
        "rate": {"knocks": 2, "per": 3, "burst": 4},
        "from": ["192.0.2.7", "2001:db8::/32"],
        "grant": {"ipv4": 24, "ipv6": 64},
        "once": False,
        "extend": True,
        "interfaces": ["eth0", "eth1", "eth0"],
        "ext-command": ["/bin/echo", "a b"],
        "ext-user": "www-data",
        "ext-timeout": 7,
    }
    assert build_one(**fields) == Rule(
        name="web",
        keys=(TimedKey(a_key(b"\xab\xcd"), NEW_YEAR, NEW_YEAR + 1),),
        tag=b"\1\0\0\0",
        ports=(PortRange(80, 80),),
        protocols=(Protocol.UDP,),
        window=5,
        skew=3,
        reject=Reject.RESET,
        old=True,
        description="the web, née gopher",
        knock_ports=(PortRange(1000, 1000), PortRange(2000, 2001)),
        rate=Rate(2, 3, 4),
        sources=(ipaddress.ip_network("192.0.2.7"), ipaddress.ip_network("2001:db8::/32")),
        prefixes=Prefixes(24, 64),
        extend=True,
        interfaces=("eth0", "eth1"),
        trigger=Trigger(("/bin/echo", "a b"), (), "www-data", 7),
    )
    # Those that exclude others stand in tests of their own.
    assert load_schema()["$defs"]["rule"]["properties"].keys() - fields.keys() == {"keys", "reset", "close-command"}


@pytest.mark.parametrize(("written", "meant"), [(-1, None), (0, 10), (1, 1), (3600, 3600)])
def test_skew(written: int, meant: int | None) -> None:
    assert build_one(skew=written).skew == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("any", ANY_PROTOCOL),
        ("tcp", (Protocol.TCP,)),
        ("udp", (Protocol.UDP,)),
        ("udplite", (Protocol.UDPLITE,)),
        (["sctp"], (Protocol.SCTP,)),
        (["sctp", "tcp", "sctp"], (Protocol.SCTP, Protocol.TCP)),
    ],
)
def test_protocol(written: str, meant: tuple[Protocol, ...]) -> None:
    assert build_one(protocol=written).protocols == meant


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({}, Reject.DROP),
        ({"reject": "drop"}, Reject.DROP),
        ({"reject": "reset"}, Reject.RESET),
        ({"reset": True}, Reject.RESET),
        ({"reset": False}, Reject.DROP),
        ({"reject": "icmp"}, Reject.ICMP),
        ({"reject": "icmp-admin"}, Reject.ICMP_ADMIN),
    ],
)
def test_the_way_to_reject(fields: dict[str, object], meant: Reject) -> None:
    assert build_one(**fields).reject is meant


@pytest.mark.parametrize(("reject", "reset"), [("drop", False), ("reset", True), ("drop", True)])
def test_reject_and_reset_exclude_each_other(reject: str, reset: bool) -> None:
    text = json.dumps([{**SSH, "reject": reject, "reset": reset}])
    (problem,) = problems_of(text)
    assert problem.column == text.index('"reset":') + len('"reset": ') + 1
    assert problem.message == '"reset" is an older spelling of "reject"; give one of the two'


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("k3y" * 14, "is 42 bytes long; at most 40 fit"),
        ("0xk3y", "must go on with hex digits only"),
        ("0x", "must go on with hex digits only"),
    ],
)
def test_a_bad_key_is_placed_and_not_shown(key: str, words: str) -> None:
    (problem,) = problems_of(f'[{{"name": "ssh", "port": 22,\n  "key": "{key}"}}]')
    assert (problem.line, problem.column) == (2, 10)
    assert problem.message.startswith('"key" ')
    assert words in problem.message
    assert "k3y" not in str(problem)


def test_a_bad_tag_is_placed() -> None:
    (problem,) = problems_of('[{"name": "ssh", "port": 22, "key": "k",\n"tag": "PKD00"}]')
    assert problem == Problem("rules.json", 2, 8, '"tag" is 5 bytes long; at most 4 fit')


@pytest.mark.parametrize("bad", ["s3cr3t" * 7, "0xs3cr3t"])
@pytest.mark.parametrize("as_object", [False, True])
def test_a_bad_key_among_several_is_placed_and_not_shown(bad: str, as_object: bool) -> None:
    entry: object = {"not-after": "2027-01-01T00:00:00Z", "key": bad} if as_object else bad
    message = problem_at({"name": "a", "port": 1, "keys": ["good", entry]}, f'"{bad}"')
    assert message.startswith('"keys" ')
    assert "s3cr3t" not in message


def test_several_keys_have_times_of_their_own() -> None:
    entries = ["a", {"key": "0x62"}, {"key": "c", "not-before": "2027-01-01T00:00:00Z"}]
    ((placed,), _) = build({"name": "ssh", "port": 22, "keys": entries})
    assert placed.rule.keys == (
        TimedKey(a_key(b"a")),
        TimedKey(a_key(b"b")),
        TimedKey(a_key(b"c"), NEW_YEAR, None),
    )


def test_odd_hex_among_several_keys_is_warned_of_at_its_place() -> None:
    (warning,) = build_rules(Document("rules.json", '[{"name": "a", "port": 1, "keys": ["b",\n "0xabc"]}]')).warnings
    assert (warning.line, warning.column) == (2, 2)
    assert warning.message.startswith('"keys" has an odd number of hex digits')


@pytest.mark.parametrize("again", ["same", "0x73616d65", {"key": "same", "not-before": "2027-01-01T00:00:00Z"}])
def test_a_key_given_twice_is_placed_and_not_shown(again: object) -> None:
    """Two times one knock would be accepted and refused by one rule at once."""
    (problem,) = problems_of(json.dumps([{"name": "a", "port": 1, "keys": ["other", "same", again]}]))
    assert problem.message.startswith('"keys" ')
    assert "same" not in problem.message.replace("the same key", "")


@pytest.mark.parametrize("keys", [{}, {"key": "k", "keys": ["l"]}], ids=["none", "both"])
def test_a_rule_has_one_of_key_and_keys(keys: dict[str, object]) -> None:
    (problem,) = problems_of(json.dumps([{"name": "a", "port": 1, **keys}]))
    assert problem.message.endswith('needs one of "key" and "keys"')


def test_key_and_keys_exclude_each_other_at_the_second() -> None:
    assert problem_at({**SSH, "keys": ["l"]}, "[\n") == '"keys" needs one of "key" and "keys"'


@pytest.mark.parametrize("field", ["not-before", "not-after"])
def test_times_of_a_key_stand_beside_it(field: str) -> None:
    message = problem_at({"name": "a", "port": 1, "keys": ["k"], field: "2027-01-01T00:00:00Z"}, '"2027')
    assert message == f'"{field}" goes with "key"; in "keys" each key has its own'


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2027-01-01T00:00:00Z", NEW_YEAR),
        ("2027-01-01t00:00:00z", NEW_YEAR),
        ("2027-01-01T00:00:00+00:00", NEW_YEAR),
        ("2027-01-01T00:00:00-00:00", NEW_YEAR),
        ("2027-01-01T02:00:00+02:00", NEW_YEAR),
        ("2026-12-31T18:30:00-05:30", NEW_YEAR),
        ("2027-01-01T00:00:00.999Z", NEW_YEAR),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_a_moment_is_read_as_rfc_3339_writes_it(text: str, seconds: int) -> None:
    rule = build_one(**{"not-before": text, "not-after": text})
    assert rule.keys == (TimedKey(a_key(b"k"), seconds, seconds),)


@pytest.mark.parametrize("field", ["not-before", "not-after"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "2027-01-01",
        "2027-01-01T00:00:00",
        "2027-01-01T00:00Z",
        "20270101T000000Z",
        "2027-W01-1T00:00:00Z",
        "2027-01-01 00:00:00",
        "2027-13-01T00:00:00Z",
        "2027-02-29T00:00:00Z",
        "2027-01-01T24:00:01Z",
        "2027-01-01T00:00:00 CET",
        "2027-01-01T00:00:00Z\n",
        "\uff12027-01-01T00:00:00Z",
        "1798761600",
        # RFC 3339 knows four digits of a year; offset and time may lead beyond.
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
    ],
)
def test_what_is_no_moment_is_refused_at_its_place(field: str, text: str) -> None:
    message = problem_at({**SSH, "description": "", field: text, "old": True}, json.dumps(text) + ',\n "old"')
    assert message == f'"{field}" must be a moment with its offset from UTC, such as 2027-01-31T12:00:00Z'


@given(st.text("0123456789-+:.,TZtzW ", max_size=30) | st.datetimes().map(datetime.isoformat) | st.text(max_size=30))
def test_any_text_is_a_moment_or_refused(text: str) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        assert isinstance(build_one(**{"not-after": text}).keys[0].not_after, int)
    except RulesError as error:
        problems = error.problems
    assert {problem.message.split()[0] for problem in problems} <= {'"not-after"'}


def test_a_key_that_would_never_be_good_is_refused() -> None:
    times = {"not-before": "2027-01-01T00:00:00Z", "not-after": "2026-12-31T23:59:59Z"}
    words = 'is before "not-before": the key would never be good'
    assert problem_at({**SSH, **times}, '"2026') == f'"not-after" {words}'
    assert problem_at({"name": "a", "port": 1, "keys": [{"key": "k", **times}]}, '"2026') == f'"keys" {words}'


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (22, [(22, 22)]),
        ("8000-8100", [(8000, 8100)]),
        ("7-7", [(7, 7)]),
        ([22, "0080-0081", 22], [(22, 22), (80, 81), (22, 22)]),
        (f"1-{MAX_PORTS_PER_RULE}", [(1, MAX_PORTS_PER_RULE)]),
    ],
)
def test_ports(written: object, meant: list[tuple[int, int]]) -> None:
    assert build_one(port=written).ports == tuple(PortRange(*ports) for ports in meant)
    assert build_one(**{"knock-port": written}).knock_ports == tuple(PortRange(*ports) for ports in meant)


@pytest.mark.parametrize("field", ["port", "knock-port"])
@pytest.mark.parametrize("text", ["8100-8000", "0-5", "65535-65536", "99999-99999"])
def test_a_range_goes_from_low_to_high(field: str, text: str) -> None:
    expected = f'"{field}" is not a range of ports from low to high within 1 to 65535: {text}'
    assert problem_at({**SSH, field: text}, f'"{text}"') == expected
    assert problem_at({**SSH, field: [7, text, "8-9"]}, f'"{text}"') == expected


@pytest.mark.parametrize("ports", [f"1-{MAX_PORTS_PER_RULE + 1}", ["1-4000", "5000-5096"], [7] * 4097])
def test_too_many_ports_are_refused(ports: object) -> None:
    text = json.dumps([{"name": "a", "key": "k", "port": ports}])
    (problem,) = problems_of(text)
    assert problem.column == text.index('"port": ') + len('"port": ') + 1
    assert problem.message == '"port" names 4097 ports; at most 4096 fit into one rule'


def test_knock_ports_cost_nothing_each() -> None:
    assert build_one(**{"knock-port": "1-65535"}).knock_ports == (PortRange(1, 65535),)


def test_a_part_of_a_rate_or_grant_leaves_the_rest_as_it_is() -> None:
    assert build_one(rate={"per": 60}).rate == Rate(1, 60, 1)
    assert build_one(rate={}).rate == Rate(1, 5, 1)
    assert build_one(grant={"ipv6": 64}).prefixes == Prefixes(32, 64)
    assert build_one(grant={"ipv4": 24}).prefixes == Prefixes(24, 128)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("192.0.2.1/24", "; bits behind the prefix must be zero"),
        ("2001:db8::1/32", "; bits behind the prefix must be zero"),
        ("192.0.2.256", ""),
        ("192.0.2.0/33", ""),
        ("192.0.2", ""),
        ("010.0.0.1", ""),
        ("example.org", ""),
        ("", ""),
        ("fe80::1%eth0", ""),
        ("192.0.2.1 ", ""),
        ("7", ""),
    ],
)
def test_who_may_knock_is_an_address_or_a_network(text: str, words: str) -> None:
    message = problem_at({**SSH, "from": ["192.0.2.7", text]}, f'"{text}"\n')
    assert message == f'"from" must be an address or a network, not "{text}"{words}'


def test_what_is_no_network_is_shown_escaped_and_cut() -> None:
    (problem,) = problems_of(json.dumps([{**SSH, "from": ["\x1b[31m" + "x" * 100]}]))
    assert problem.message == f'"from" must be an address or a network, not "\\u001b[31m{"x" * 45}"'


@pytest.mark.parametrize(
    ("written", "argv"),
    [
        ("/bin/true", ["/bin/true"]),
        ("  /bin/echo   a\tb\nc ", ["/bin/echo", "a", "b", "c"]),
        ("/bin/echo 'a b' \"c d\" e\\ f ''", ["/bin/echo", "a b", "c d", "e f", ""]),
        (
            "/bin/echo a; rm -rf $(id) `id` | x && y > /z #q",
            ["/bin/echo", "a;", "rm", "-rf", "$(id)", "`id`", "|", "x", "&&", "y", ">", "/z", "#q"],
        ),
        ("/bin/echo $HOME ~ *.c {a,b}", ["/bin/echo", "$HOME", "~", "*.c", "{a,b}"]),
        ("/bin/echo née", ["/bin/echo", "née"]),
        (["/bin/echo", "a b; $(id)", "", "'"], ["/bin/echo", "a b; $(id)", "", "'"]),
        (["/opt/with space/x"], ["/opt/with space/x"]),
    ],
)
@pytest.mark.parametrize("field", ["ext-command", "close-command"])
def test_a_string_is_split_as_a_shell_would_and_nothing_is_interpreted(
    field: str, written: object, argv: list[str]
) -> None:
    trigger = build_one(**{field: written}).trigger
    assert {"ext-command": trigger.command, "close-command": trigger.close_command}[field] == tuple(argv)
    assert trigger


@pytest.mark.parametrize("rule", [SSH, BARE], ids=["with a port", "without"])
@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("true", "must start with the absolute path of a program: no search path is used"),
        ("./true /x", "must start with the absolute path of a program: no search path is used"),
        ("''", "must start with the absolute path of a program: no search path is used"),
        (["bin/true"], "must start with the absolute path of a program: no search path is used"),
        ([""], "must start with the absolute path of a program: no search path is used"),
        ("/bin/echo 'a", "cannot be split into words: no closing quotation"),
        ('/bin/echo "a', "cannot be split into words: no closing quotation"),
        ("/bin/echo \\", "cannot be split into words: no escaped character"),
        ("  ", "is empty"),
        ("/bin/echo a\0b", "has a zero byte, which no argument can hold"),
        (["/bin/echo", "\0"], "has a zero byte, which no argument can hold"),
    ],
)
def test_a_command_that_cannot_be_run_is_one_fault(rule: dict[str, object], written: object, words: str) -> None:
    text = json.dumps([{**rule, "ext-command": written}])
    (problem,) = problems_of(text)
    assert problem.column == text.index('"ext-command": ') + len('"ext-command": ') + 1
    assert problem.message == f'"ext-command" {words}'


def test_a_close_command_that_cannot_be_run_is_one_fault() -> None:
    message = problem_at({**SSH, "close-command": "true"}, '"true"')
    assert message == '"close-command" must start with the absolute path of a program: no search path is used'


def test_a_rule_may_have_a_command_and_no_port() -> None:
    ((placed,), _) = build({**BARE, "ext-command": "/bin/true"})
    assert placed.rule.ports == ()
    assert placed.rule.trigger == Trigger(("/bin/true",))
    assert list(placed.rule.services()) == []


@pytest.mark.parametrize("more", [{}, {"close-command": "/bin/true"}, {"ext-user": "root", "knock-port": 7}])
def test_a_rule_has_a_port_or_a_command(more: dict[str, object]) -> None:
    message = problem_at({**BARE, **more}, "{")
    assert message == 'the rule has neither a "port" to open nor an "ext-command" to run'


def test_without_commands_there_is_no_trigger() -> None:
    assert not build_one().trigger
    assert build_one().trigger == NO_TRIGGER


def test_a_close_command_needs_a_window_that_ends() -> None:
    message = problem_at({**SSH, "extend": True, "close-command": "/bin/true"}, '"/bin/true"')
    assert message == '"close-command" cannot follow a window that traffic renews; not together with "extend"'


@pytest.mark.parametrize("protocol", ["any", "udp", "udplite", ["tcp", "udp"], None])
def test_once_needs_connections(protocol: object) -> None:
    given = {} if protocol is None else {"protocol": protocol}
    message = problem_at({**SSH, **given, "once": True}, "true")
    assert message == '"once" needs a "protocol" with connections: dccp, sctp, tcp'


@pytest.mark.parametrize("protocol", ["tcp", "sctp", "dccp", ["tcp", "sctp"]])
def test_once_goes_with_connections(protocol: object) -> None:
    assert build_one(protocol=protocol, once=True).once


def test_once_and_extend_exclude_each_other() -> None:
    message = problem_at({**SSH, "protocol": "tcp", "once": True, "extend": True}, "true\n")
    assert message == '"extend" renews what "once" ends at the first connection; give one of the two'


@pytest.mark.parametrize("field", ["key", "tag"])
def test_odd_hex_is_read_and_warned_of(field: str) -> None:
    built = build({**SSH, field: "0xabc"})
    rule = built.rules[0].rule
    assert {"key": rule.keys[0].secret.reveal(), "tag": rule.tag}[field].startswith(b"\xab\xc0\0")
    (warning,) = built.warnings
    assert warning.message == f'"{field}" has an odd number of hex digits; its last byte is read with a 0 behind'
    assert warning.line == 1
    assert warning.column > 1


def test_even_hex_and_text_are_no_reason_for_warnings() -> None:
    assert build({**SSH, "key": "0xab", "tag": "abc"}).warnings == ()


def test_all_faults_of_a_file_are_reported_in_its_order() -> None:
    rules = [
        {**SSH, "name": "a", "tag": "too long", "key": "0xz"},
        {**SSH, "name": "b"},
        {**SSH, "name": "c", "reset": True, "reject": "drop"},
    ]
    problems = problems_of(json.dumps(rules, indent=1))
    assert [problem.message.split()[0] for problem in problems] == ['"key"', '"tag"', '"reset"']
    assert all(before < after for before, after in pairwise(problems))


def test_the_schemas_faults_come_alone_and_sorted() -> None:
    text = '[{"port": 0, "key": "0xz", "name": "ssh"},\n{"kee": "x", "port": 1}]'
    problems = problems_of(text)
    assert [(problem.line, problem.column) for problem in problems] == [(1, 11), (2, 1), (2, 2)]
    assert 'did you mean "key"' in problems[2].message


def test_rules_keep_their_order_and_know_their_place() -> None:
    document = Document("rules.json", '[\n{"name": "b", "key": "k", "port": 1},\n{"port": 2, "key": "k", "name": "a"}]')
    rules = build_rules(document).rules
    assert [placed.rule.name for placed in rules] == ["b", "a"]
    assert [placed.where() for placed in rules] == ["rules.json:2", "rules.json:3"]
    assert rules[1].problem("port", "wrong") == Problem("rules.json", 3, 10, "wrong")


@pytest.mark.parametrize("template", ["%s", '[{"name": %s, "key": "k", "port": 1}]', '[{"key": %s}]'])
@pytest.mark.parametrize(("opening", "inner", "closing"), [("[", "", "]"), ('{"a":', "1", "}")])
def test_a_file_nested_at_any_depth_is_refused_and_not_a_crash(
    template: str, opening: str, inner: str, closing: str
) -> None:
    """The parser's limit depends on how deep the stack is when it is called; no depth may lie between two limits."""
    for depth in (*range(3, 40), *range(700, 1100)):
        (problem, *_) = problems_of(template % (opening * depth + inner + closing * depth))
        assert problem.line == 1


@given(st.lists(st.dictionaries(st.sampled_from([*load_schema()["$defs"]["rule"]["properties"]]), json_values)))
def test_any_list_of_objects_is_built_or_refused(rules: list[dict[str, object]]) -> None:
    problems: tuple[Problem, ...] = ()
    built: BuiltFile | None = None
    try:
        built = build(*rules)
    except RulesError as error:
        problems = error.problems
    assert list(problems) == sorted(problems)
    assert bool(problems) is (built is None)
    assert built is None or len(built.rules) == len(rules)


def test_rules_that_share_nothing_or_agree_do_not_conflict() -> None:
    assert (
        conflicts(
            {**SSH, "name": "a", "reject": "reset"},
            {**SSH, "name": "b", "reset": True},
            {**SSH, "name": "c", "port": 23},
        )
        == []
    )


def test_a_name_used_twice_is_a_conflict_at_the_second() -> None:
    (problem,) = conflicts(SSH, {"port": 23, "key": "k", "name": "ssh"})
    assert problem.message == 'the name "ssh" is already used at rules.json:1'
    assert problem.column > 50


def test_a_name_used_thrice_is_two_conflicts_with_the_first() -> None:
    text = "[" + ",\n".join(json.dumps({**SSH, "port": port}) for port in (1, 2, 3)) + "]"
    found = list(find_conflicts(build_rules(Document("rules.json", text)).rules))
    assert [problem.line for problem in found] == [2, 3]
    assert all(problem.message.endswith("rules.json:1") for problem in found)


def test_rules_that_share_a_port_must_agree_on_how_to_reject() -> None:
    (problem,) = conflicts({**SSH, "name": "a"}, {**SSH, "name": "b", "reject": "reset"})
    assert problem.message == (
        'rule "b" rejects 22/tcp with "reset", but rule "a" (rules.json:1) with "drop"; '
        "rules that share a port must agree"
    )


@pytest.mark.parametrize(
    ("first", "second", "contradict"),
    [("tcp", "udp", False), ("tcp", "any", True), ("any", "udp", True), ("udp", "udp", True)],
)
def test_protocols_decide_whether_a_port_is_shared(first: str, second: str, contradict: bool) -> None:
    found = conflicts(
        {**SSH, "name": "a", "protocol": first},
        {**SSH, "name": "b", "protocol": second, "reject": "reset"},
    )
    assert bool(found) is contradict


def test_conflicts_between_files_name_both() -> None:
    rules = [*build(SSH, name="a.json").rules, *build(SSH, name="b.json").rules]
    (problem,) = find_conflicts(rules)
    assert problem.path == "b.json"
    assert "a.json:1" in problem.message
