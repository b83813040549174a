"""knockd's doors."""

from __future__ import annotations

import pytest

from nfpkd.importing.kinds import Kind
from nfpkd.rules.model import Prefixes, Trigger, parse_key
from support.importing import MADE_KEY, Outcome, import_text

DOOR = "[SSH]\nsequence = 7000,8000:udp\nseq_timeout = 5\ntcpflags = syn\n"
OPEN = "/sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT"


def knockd(*lines: str) -> Outcome:
    return import_text(Kind.KNOCKD, DOOR + "\n".join(lines) + "\n")


def services(outcome: Outcome) -> list[str]:
    return [rule.describe_services() for rule in outcome.rules.values()]


def test_a_door_becomes_a_rule_with_a_new_key() -> None:
    outcome = knockd(f"start_command = {OPEN}", "cmd_timeout = 15", f"stop_command = {OPEN.replace('-A', '-D')}")
    rule = outcome.rules["SSH"]
    assert rule.keys[0].secret == parse_key(MADE_KEY)
    assert rule.tag == b"SSH\0"
    assert rule.describe_services() == "22/tcp"
    assert rule.window == 15
    assert not rule.trigger
    (remark,) = outcome.remarks
    assert remark.line == 2
    assert "--tag SSH" in remark.text
    assert not remark.left_out


def test_a_door_that_stays_open_gets_a_window_and_the_one_that_closes_it_goes() -> None:
    outcome = import_text(
        Kind.KNOCKD,
        "[options]\n UseSyslog\n logfile = /var/log/knockd.log\n Interface = eth0\n# a comment\n\n"
        f"[openSSH]\n Sequence = 1,2\n Command = {OPEN}\n[closeSSH]\n sequence = 2,1\n"
        f" command = {OPEN.replace('-A', '-D')}\n",
    )
    (rule,) = outcome.rules.values()
    assert (rule.name, rule.tag, rule.window) == ("openSSH", b"SSH\0", 60)
    assert '"interfaces"' in outcome.said(4)[0]
    assert 'set "window"' in outcome.said(9)[0]
    assert "not needed" in outcome.said(12)[0]
    assert outcome.lost() == set()


@pytest.mark.parametrize(
    ("command", "opened"),
    [
        ("iptables -I INPUT 1 -s %IP%/32 -p tcp -m multiport --dports 22,80:90 -j ACCEPT", "22,80-90/tcp"),
        (f"{OPEN} && /sbin/ip6tables -A INPUT -s %IP%/128 -p udp --dport 22 -j ACCEPT", "22/tcp+udp"),
        (f"{OPEN}; {OPEN}", "22/tcp"),
        ("iptables -A INPUT -s %IP% --dport 22 -j ACCEPT", "22/any"),
        ("iptables -w -A INPUT -s %IP% -p 17 --dport 60000: -m comment --comment 'a b' -j ACCEPT", "60000-65535/udp"),
        ("/usr/local/sbin/knock_add -i -c INPUT -p tcp -d 443 -f %IP%", "443/tcp"),
        ("knock_helper_ipt.sh --append --srcaddr %IP% --dstport 443", "443/tcp"),
        ("ufw allow from %IP% to any port 22 proto tcp", "22/tcp"),
        ("ufw insert 1 allow proto udp from %IP% to any port 1194", "1194/udp"),
        ("/usr/sbin/ufw prepend allow in on eth0 from %IP% to any port 80,443 comment 'web'", "80,443/tcp+udp"),
        ("nft add rule inet filter input ip saddr %IP% tcp dport 22 accept", "22/tcp"),
        ("nft insert rule inet filter input ip6 saddr %IP% tcp dport { 22, 80-90 } counter accept", "22,80-90/tcp"),
    ],
)
def test_what_a_command_opens(command: str, opened: str) -> None:
    outcome = knockd(f"command = {command}")
    if opened.startswith("60000"):
        # More than one rule may have.
        assert "names 5536 ports" in outcome.said(1)[0]
    else:
        assert services(outcome) == [opened]
        assert outcome.lost() == set()


@pytest.mark.parametrize(
    "command",
    [
        f"{OPEN.replace('-A', '-D')}; {OPEN.replace('-A', '--delete').replace('22', '80')}",
        "iptables -D INPUT -s %IP% -j ACCEPT",
        "knock_add -x -f %IP% -d 22",
        "ufw delete allow from %IP% to any port 22",
        "nft delete element inet filter allowed { %IP% }",
    ],
)
def test_a_door_that_only_closes_is_not_needed(command: str) -> None:
    outcome = knockd(f"command = {command}")
    assert not outcome.rules
    assert "not needed" in outcome.said(5)[0]
    assert outcome.lost() == set()


def test_ports_of_several_protocols_are_rules_that_one_knock_opens() -> None:
    outcome = knockd(f"command = {OPEN} && {OPEN.replace('tcp --dport 22', 'udp --dport 53')}")
    assert {name: rule.describe_services() for name, rule in outcome.rules.items()} == {
        "SSH": "22/tcp",
        "SSH-2": "53/udp",
    }
    assert len({(rule.tag, rule.keys) for rule in outcome.rules.values()}) == 1


def test_a_network_around_the_address_is_a_grant() -> None:
    outcome = knockd(f"command = {OPEN.replace('%IP%', '%IP%/24')} && ip6{OPEN[8:].replace('%IP%', '%IP%/64')}")
    assert outcome.rules["SSH"].prefixes == Prefixes(24, 64)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("iptables -A INPUT -s %IP% -p tcp --syn -j ACCEPT", "opens every port"),
        ("iptables -A INPUT -s 192.0.2.7 -p tcp --dport 22 -j ACCEPT", "another address"),
        ("iptables -A INPUT -s %IP%/255.255.0.0 -p tcp --dport 22 -j ACCEPT", "no prefix"),
        ("iptables -A FORWARD -s %IP% -p tcp --dport 22 -j ACCEPT", "FORWARD"),
        ("iptables -A INPUT -s %IP% -p tcp --dport 22 -j DROP", "something else than to ACCEPT"),
        ("iptables -D INPUT -p tcp --dport 22 -j DROP", "something else than to ACCEPT"),
        ("iptables -A INPUT -s %IP% -p tcp --dport 22 -m limit --limit 1/s -j ACCEPT", "--limit"),
        ("iptables -A INPUT -s %IP% -p tcp --dport 90:80 -j ACCEPT", "from high to low"),
        ("iptables -A INPUT -s %IP% -p tcp --dport 70000 -j ACCEPT", "1 to 65535"),
        ("iptables -s %IP% -p tcp --dport 22 -j ACCEPT", "not understood"),
        (f"{OPEN} | tee log", "belong to no option"),
        ("ufw allow from %IP%", "not understood"),
        ("nft add element inet filter allowed { %IP% }", "not understood"),
        ("firewall-cmd --add-source=%IP%", "not understood"),
        ("knock_add -i -f %IP%", "write the number"),
        ("/usr/bin/mail -s %IP% root", "NFPKD_SOURCE"),
        ("/usr/bin/date > /run/knocked", "needs a shell"),
        ("service apache2 restart", "absolute path"),
        ("/usr/bin/echo 'unfinished", "does not end"),
    ],
)
def test_a_command_without_counterpart_is_named_and_its_door_left_out(command: str, said: str) -> None:
    outcome = knockd(f"command = {command}")
    assert not outcome.rules
    (text,) = outcome.said(5)
    assert text.startswith("not imported: ")
    assert said in text
    assert outcome.lost() == {5}


@pytest.mark.parametrize(
    ("command", "said", "lost"),
    [
        (f"{OPEN}; /usr/bin/logger open", "runs something else, too", {5}),
        (
            OPEN.replace("INPUT", "PREROUTING -t nat").replace("ACCEPT", "DNAT --to-destination 10.0.0.1"),
            "forwards",
            {5},
        ),
        (OPEN.replace("INPUT", "INPUT -i eth0"), "on one interface", set()),
        (OPEN.replace("-s %IP%", ""), "opens for everybody", set()),
    ],
)
def test_what_a_command_does_besides_is_said(command: str, said: str, lost: set[int]) -> None:
    outcome = knockd(f"command = {command}")
    assert services(outcome) == ["22/tcp"]
    assert any(said in text for text in outcome.said(5))
    assert outcome.lost() == lost


def test_another_program_becomes_the_rules_command() -> None:
    outcome = knockd(
        'start_command = /usr/bin/systemctl start "my unit"',
        "cmd_timeout = 100",
        "stop_command = /usr/bin/systemctl stop 'my unit'",
    )
    rule = outcome.rules["SSH"]
    assert rule.ports == ()
    assert rule.window == 100
    assert rule.trigger == Trigger(
        ("/usr/bin/systemctl", "start", "my unit"), ("/usr/bin/systemctl", "stop", "my unit"), "root"
    )
    assert "root" in outcome.said(5)[0]


def test_a_program_that_runs_once_needs_no_window() -> None:
    assert knockd("command = /usr/bin/true").rules["SSH"].trigger.command == ("/usr/bin/true",)


def test_a_program_may_run_as_the_door_closes() -> None:
    opens = f"{OPEN} && {OPEN.replace('tcp', 'udp').replace('22', '53')}"
    outcome = knockd(f"command = {opens}", "stop_command = /usr/bin/true")
    assert [rule.trigger.close_command for rule in outcome.rules.values()] == [("/usr/bin/true",), ()]
    assert {rule.window for rule in outcome.rules.values()} == {10}


@pytest.mark.parametrize(
    ("lines", "line", "said"),
    [
        (["cmd_timeout = ten", f"stop_command = {OPEN.replace('-A', '-D')}"], 6, "no number of seconds"),
        ([f"stop_command = {OPEN.replace('-A', '-D')}; /usr/bin/logger closed"], 6, "runs something else"),
        ([f"stop_command = {OPEN}"], 6, "opens a port as the door closes"),
        (["target = 10.0.0.1"], 6, "addresses of this host"),
        (["start_command_6 ="], 6, "for IPv4"),
        (["start_command_6 = ip6tables -A INPUT -s %IP% -p tcp --dport 23 -j ACCEPT"], 6, "for IPv4"),
        ([f"stop_command = {OPEN.replace('-A', '-D')}", "stop_command_6 ="], 7, "for IPv4"),
        (["what is this"], 6, "not a line that knockd knows"),
    ],
)
def test_what_else_is_left_out_is_named(lines: list[str], line: int, said: str) -> None:
    outcome = knockd(f"command = {OPEN}", *lines)
    assert services(outcome) == ["22/tcp"]
    assert any(said in text for text in outcome.said(line))
    assert outcome.lost() == {line}


def test_the_same_command_for_ipv6_is_nothing_to_speak_of() -> None:
    ipv6 = OPEN.replace("iptables", "ip6tables")
    outcome = knockd(
        f"start_command = {OPEN}",
        f"start_command_6 = {ipv6}",
        f"stop_command = {OPEN.replace('-A', '-D')}",
        f"stop_command_6 = {ipv6.replace('-A', '-D')}",
    )
    assert {remark.line for remark in outcome.remarks} == {2}


def test_a_door_without_command_and_a_line_in_front_of_all_doors_are_named() -> None:
    outcome = import_text(Kind.KNOCKD, "sequence = 1,2\n[nothing]\nsequence = 1,2\n")
    assert not outcome.rules
    assert outcome.lost() == {1, 2}


def test_tags_and_names_are_made_of_section_names_and_differ() -> None:
    doors = ["open SSH!", "openSSH", "ssh", "0xff", "open", "äö", "Ä"]
    outcome = import_text(Kind.KNOCKD, "".join(f"[{door}]\nsequence=1,2\ncommand={OPEN}\n" for door in doors))
    assert {name: rule.tag.rstrip(b"\0").decode() for name, rule in outcome.rules.items()} == {
        "open-SSH": "SSH",
        "openSSH": "SSH2",
        "ssh": "SSH3",
        "0xff": "K0XF",
        "open": "OPEN",
        "rule": "K",
        "rule-2": "K2",
    }
    assert "already used at file:16" in "".join(outcome.said(19))
