"""ipt_pkd's rules, as its README gives them and as iptables-save 1.8.9 prints what they are made of."""

from __future__ import annotations

import ipaddress

import pytest

from nfpkd.importing.kinds import Kind
from nfpkd.rules.model import PortRange, Prefixes, Protocol, Reject, parse_key, parse_tag
from support.importing import Outcome, import_text

SAVED_KEY = "0x" + b"open sesame".hex().ljust(80, "0")
KNOCK = (
    f"-A INPUT -p udp -m pkd  --key {SAVED_KEY} --window 10 --tag 0x5353484b  "
    "-m recent --set --name PKD --mask 255.255.255.255 --rsource"
)
OPEN = (
    "-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW "
    "-m recent --rcheck --seconds 90 --hitcount 1 --name PKD --mask 255.255.255.255 --rsource -j ACCEPT"
)
REFUSE = "-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -j REJECT --reject-with tcp-reset"


def save(*lines: str) -> Outcome:
    return import_text(Kind.IPTABLES, "\n".join(["*filter", ":INPUT ACCEPT [0:0]", *lines, "COMMIT", ""]))


def test_a_knock_and_what_it_opens_are_one_rule() -> None:
    outcome = save(KNOCK, OPEN, REFUSE)
    (rule,) = outcome.rules.values()
    assert rule.name == "PKD"
    assert rule.keys[0].secret == parse_key("open sesame")
    assert rule.tag == parse_tag("SSHK")
    assert rule.ports == (PortRange(22, 22),)
    assert rule.protocols == (Protocol.TCP,)
    assert rule.window == 90
    assert rule.skew == 10
    assert rule.reject is Reject.RESET
    assert outcome.remarks == ()


def test_a_script_is_read_as_well() -> None:
    outcome = import_text(
        Kind.IPTABLES,
        "#!/bin/sh\n"
        "sudo iptables -A INPUT --protocol udp --match pkd --key 'open sesame' \\\n"
        "    -m recent --set\n"
        "/sbin/iptables -I INPUT 3 -p tcp --destination-port 22 -m recent --rcheck --seconds 60 -j ACCEPT\n",
    )
    (rule,) = outcome.rules.values()
    assert rule.name == "DEFAULT"
    assert rule.keys[0].secret == parse_key("open sesame")
    assert rule.tag == parse_tag("PKD0")
    assert outcome.remarks == ()


def test_a_last_line_that_goes_on_is_a_line() -> None:
    outcome = import_text(Kind.IPTABLES, f"{OPEN}\n{KNOCK} \\\n\\")
    assert list(outcome.rules) == ["PKD"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("0xabc", "0xabc0"),
        ("0XABC", "0x3058414243"),
        ("0xabzz", "0xab"),
        ("x" * 50, "x" * 40),
        ("0x" + "ab" * 50, "0x" + "ab" * 40),
    ],
)
def test_keys_are_what_they_are_to_ipt_pkd(given: str, meant: str) -> None:
    (rule,) = save(KNOCK.replace(SAVED_KEY, given), OPEN).rules.values()
    assert rule.keys[0].secret == parse_key(meant)


@pytest.mark.parametrize(("window", "skew"), [(0, None), (10, 10), (25, 25)])
def test_its_window_is_our_skew(window: int, skew: int | None) -> None:
    (rule,) = save(KNOCK.replace("--window 10", f"--window {window}"), OPEN).rules.values()
    assert rule.skew == skew


def test_lines_on_the_same_terms_are_one_rule_and_others_share_its_key() -> None:
    outcome = save(
        KNOCK,
        OPEN,
        OPEN.replace("tcp -m tcp --dport 22", "udp -m udp --dport 22"),
        OPEN.replace("-m tcp --dport 22", "-m multiport --dports 80,443,8000:8100"),
        OPEN.replace("--dport 22", "--dport 25").replace("--seconds 90", "--seconds 30"),
    )
    assert {name: (rule.describe_services(), rule.window) for name, rule in outcome.rules.items()} == {
        "PKD": ("22/tcp+udp", 90),
        "PKD-2": ("80,443,8000-8100/tcp", 90),
        "PKD-3": ("25/tcp", 30),
    }
    assert len({rule.keys for rule in outcome.rules.values()}) == 1
    assert outcome.remarks == ()


def test_update_and_mask_and_source_and_knock_port_have_their_fields() -> None:
    (rule,) = save(
        KNOCK.replace("-m pkd", '-s 10.0.0.0/8 -m udp --dport 4000:5000 -m comment --comment "it\\\'s me" -m pkd'),
        OPEN.replace("--rcheck", "--update").replace("255.255.255.255", "255.255.255.0"),
    ).rules.values()
    assert rule.extend
    assert rule.prefixes == Prefixes(24, 128)
    assert rule.sources == (ipaddress.ip_network("10.0.0.0/8"),)
    assert rule.knock_ports == (PortRange(4000, 5000),)
    assert rule.description == "it's me"


@pytest.mark.parametrize(
    ("line", "reject"),
    [
        ("-A INPUT -j DROP", Reject.DROP),
        ("-A INPUT -p tcp -j REJECT --reject-with icmp-port-unreachable", Reject.ICMP),
        (
            "-A INPUT -p tcp -m multiport --dports 1:100 -j REJECT --reject-with icmp-admin-prohibited",
            Reject.ICMP_ADMIN,
        ),
        # These are about others.
        ("-A INPUT -p udp -m udp --dport 22 -j REJECT --reject-with icmp-port-unreachable", Reject.DROP),
        ("-A INPUT -s 10.0.0.0/8 -j REJECT --reject-with icmp-port-unreachable", Reject.DROP),
        ("-A INPUT -m state --state INVALID -j REJECT --reject-with icmp-port-unreachable", Reject.DROP),
        ("-A OTHER -j REJECT --reject-with icmp-port-unreachable", Reject.DROP),
        ("-A INPUT -p tcp -m tcp --dport ssh -j REJECT", Reject.DROP),
    ],
)
def test_others_get_what_they_got(line: str, reject: Reject) -> None:
    (rule,) = save(KNOCK, OPEN, line).rules.values()
    assert rule.reject is reject


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (OPEN.replace("NEW", "ESTABLISHED"), "limits how long sessions last"),
        (OPEN.replace("-j ACCEPT", "-j LOG"), "does not ACCEPT"),
        (OPEN.replace("--rcheck", "--remove"), '"once"'),
        (OPEN.replace("-m tcp", "-m time --timestart 10:00 -m tcp"), "--timestart"),
        (OPEN.replace("--dport", "! --dport"), "! --dport"),
        (OPEN.replace("--dport 22", "--dport ssh"), "write the number"),
        (OPEN.replace("--dport 22", ""), "opens every port"),
        (OPEN.replace("-p tcp", "-p icmp"), "without ports"),
        (OPEN.replace("INPUT", "FORWARD"), "FORWARD"),
        (OPEN.replace("--seconds 90", "--seconds long"), "no number behind --seconds"),
        (OPEN.replace("255.255.255.255", "255.0.255.0"), "no prefix"),
        (OPEN + " --name PKD", "--name twice"),
        (OPEN + " stray", "belong to no option"),
    ],
)
def test_what_opens_in_a_way_that_a_rule_cannot_is_named_and_left_out(line: str, said: str) -> None:
    outcome = save(KNOCK, OPEN.replace("--dport 22", "--dport 23"), line)
    assert [rule.describe_services() for rule in outcome.rules.values()] == ["23/tcp"]
    (text,) = outcome.said(5)
    assert said in text
    assert outcome.lost() == {5}


@pytest.mark.parametrize(
    ("knock", "said"),
    [
        (KNOCK.split("-m recent")[0], "fills no list"),
        (KNOCK.replace("PKD --mask", "WEB --mask"), "no rule opens a port to the list WEB"),
        (KNOCK.replace("-p udp", "-p tcp"), "a knock is UDP"),
        (KNOCK.replace("-m pkd", "-m mac --mac-source 00:00:5e:00:53:01 -m pkd"), "--mac-source"),
        (KNOCK.replace(f"--key {SAVED_KEY}", ""), "has no --key"),
        (KNOCK.replace("--window 10", "--window soon"), "no number behind --window"),
        (KNOCK.replace("--name PKD", "--name 'PKD"), "does not end"),
        (KNOCK.replace(SAVED_KEY, "''"), '"key" must be'),
        ("ip46tables" + KNOCK, "not a line of iptables"),
        ("iptables " + KNOCK.replace(SAVED_KEY, "$KEY"), "shell's variable"),
        (KNOCK + " -m", "ends behind -m"),
    ],
)
def test_a_knock_that_cannot_be_expressed_is_named(knock: str, said: str) -> None:
    outcome = save(knock, OPEN)
    assert not outcome.rules
    assert any(said in text for text in outcome.said(3))
    assert 3 in outcome.lost()
    assert "sesame" not in str(outcome.remarks)
    assert SAVED_KEY not in str(outcome.remarks)


def test_what_is_done_in_another_way_is_said() -> None:
    outcome = save(
        KNOCK.replace("-p udp", "-i eth0 -p udp -m limit --limit 1/min"),
        OPEN.replace("--seconds 90", ""),
        OPEN.replace("--hitcount 1", "--hitcount 3").replace("--dport 22", "--dport 23"),
        OPEN.replace("-p tcp", "-d 192.0.2.7/32 -p tcp").replace("--dport 22", "--dport 24"),
    )
    assert {rule.window for rule in outcome.rules.values()} == {60, 90}
    assert any("-i not taken over" in text for text in outcome.said(3))
    assert any('"rate"' in text for text in outcome.said(3))
    assert any("without --seconds" in text for text in outcome.said(4))
    assert any("--hitcount" in text for text in outcome.said(5))
    assert any("-d not taken over" in text for text in outcome.said(6))
    assert outcome.lost() == {3, 5}


def test_a_forwarded_port_is_guarded_and_the_forwarding_named() -> None:
    outcome = import_text(
        Kind.IPTABLES,
        f"*filter\n{KNOCK}\nCOMMIT\n*nat\n"
        "-A PREROUTING -p tcp -m tcp --dport 2241 -m recent --rcheck --seconds 200 --name PKD "
        "-j DNAT --to-destination 10.1.4.41:22\nCOMMIT\n",
    )
    assert [rule.describe_services() for rule in outcome.rules.values()] == ["2241/tcp"]
    assert outcome.lost() == {5}


def test_sources_of_knock_and_opening_must_agree() -> None:
    from_both = save(KNOCK.replace("-p udp", "-s 10.0.0.0/8 -p udp"), OPEN.replace("-p tcp", "-s 192.0.2.0/24 -p tcp"))
    assert not from_both.rules
    assert "other sources" in from_both.said(4)[0]


def test_several_keys_for_one_list_are_a_rule_each_and_the_list_is_remarked_on_once() -> None:
    other = KNOCK.replace(SAVED_KEY, "0x11").replace("0x5353484b", "OTHR")
    outcome = save(KNOCK, other, OPEN.replace("--hitcount 1", "--hitcount 2"))
    assert {rule.tag for rule in outcome.rules.values()} == {b"SSHK", b"OTHR"}
    assert len(outcome.said(5)) == 1
    # The second of them has to have a name of its own, and that is said.
    assert "already used" in outcome.said(4)[0]


def test_queues_are_no_longer_needed() -> None:
    outcome = save(
        "-A INPUT -p udp -j NFQUEUE --queue-num 3 --queue-bypass",
        "[0:0] -A INPUT -p tcp -m tcp --dport 22 -j NFQUEUE --queue-balance 0:3",
    )
    assert "queue 3" in outcome.said(3)[0]
    assert "queue 0:3" in outcome.said(4)[0]
    assert outcome.lost() == set()


def test_what_has_nothing_to_do_with_it_is_passed_over() -> None:
    outcome = save(
        KNOCK,
        OPEN,
        "# -m pkd in a comment",
        "-N pkd",
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -m recent --rcheck --name badguys -j DROP",
        "-A INPUT -m set --match-set x src -j ACCEPT extra words",
        "-D INPUT -p tcp --dport 22 -j ACCEPT",
    )
    assert outcome.remarks == ()
