"""fwknop's access stanzas."""

from __future__ import annotations

import ipaddress

import pytest

from nfpkd.importing.kinds import Kind
from nfpkd.rules.model import Trigger, parse_key
from support.importing import MADE_KEY, Outcome, import_text

SECRETS = "KEY hunter2\nHMAC_KEY_BASE64 aHVudGVyMg==\n"


def fwknop(*settings: str, source: str = "ANY") -> Outcome:
    outcome = import_text(Kind.FWKNOP, f"SOURCE {source}\n{SECRETS}" + "\n".join(settings) + "\n")
    assert not any("hunter2" in remark.text or "aHVu" in remark.text for remark in outcome.remarks)
    return outcome


def test_a_stanza_becomes_a_rule_with_a_new_key() -> None:
    outcome = fwknop(
        "OPEN_PORTS: tcp/22, tcp/443 ; the usual",
        "FW_ACCESS_TIMEOUT 120",
        source="10.1.2.3/24, 192.0.2.7,2001:db8::/32",
    )
    (rule,) = outcome.rules.values()
    assert rule.name == "fwknop-1"
    assert rule.keys[0].secret == parse_key(MADE_KEY)
    assert rule.tag == b"FW1\0"
    assert rule.describe_services() == "22,443/tcp"
    assert rule.window == 120
    assert rule.sources == tuple(map(ipaddress.ip_network, ("10.1.2.0/24", "192.0.2.7", "2001:db8::/32")))
    (remark,) = outcome.remarks
    assert remark.line == 2
    assert "--tag FW1" in remark.text
    assert not remark.left_out


def test_defaults_are_fwknops() -> None:
    (rule,) = fwknop("OPEN_PORTS tcp/22", "FW_ACCESS_TIMEOUT 0").rules.values()
    assert rule.window == 30
    assert rule.sources == ()


def test_ports_are_open_that_are_not_restricted() -> None:
    outcome = fwknop("OPEN_PORTS tcp/22,udp/53,tcp/25,icmp/8,tcp/ssh", "RESTRICT_PORTS tcp/25")
    assert [rule.describe_services() for rule in outcome.rules.values()] == ["22/tcp", "53/udp"]
    assert len({rule.keys for rule in outcome.rules.values()}) == 1
    assert len(outcome.said(4)) == 2
    assert outcome.lost() == {4}


@pytest.mark.parametrize(
    ("setting", "until"),
    [
        ("ACCESS_EXPIRE 12/31/2030", 1924905600),
        ("ACCESS_EXPIRE 12/31/30", 1924905600),
        ("ACCESS_EXPIRE_EPOCH 1924905601", 1924905601),
        ("ACCESS_EXPIRE_EPOCH 0", None),
        ("ACCESS_EXPIRE 1/1/2031\nACCESS_EXPIRE_EPOCH 1924905601", 1924905601),
    ],
)
def test_an_expiry_is_the_keys(setting: str, until: int | None) -> None:
    (rule,) = fwknop("OPEN_PORTS tcp/22", setting).rules.values()
    assert rule.keys[0].not_after == until


@pytest.mark.parametrize(
    ("settings", "source", "said"),
    [
        ([], "ANY", "OPEN_PORTS"),
        (["OPEN_PORTS icmp/8"], "ANY", "OPEN_PORTS"),
        (["OPEN_PORTS tcp/22"], "192.0.2.0/24,everybody", "SOURCE"),
        (["OPEN_PORTS tcp/22", "ACCESS_EXPIRE 31/12/2030"], "ANY", "ACCESS_EXPIRE is no date"),
        (["OPEN_PORTS tcp/22", "ACCESS_EXPIRE tomorrow"], "ANY", "ACCESS_EXPIRE is no date"),
        (["OPEN_PORTS tcp/22", f"ACCESS_EXPIRE_EPOCH {10**30}"], "ANY", "ACCESS_EXPIRE_EPOCH is no date"),
        (["OPEN_PORTS tcp/22", "FW_ACCESS_TIMEOUT long"], "ANY", "FW_ACCESS_TIMEOUT is no number"),
        (["OPEN_PORTS tcp/22", "FW_ACCESS_TIMEOUT 99999999"], "ANY", '"window" must be'),
        (["CMD_CYCLE_OPEN /usr/bin/open $IP"], "ANY", "NFPKD_SOURCE"),
        (["CMD_CYCLE_OPEN /usr/bin/open $PORT"], "ANY", "there are no OPEN_PORTS"),
        (["OPEN_PORTS tcp/22", "CMD_CYCLE_OPEN /usr/bin/open $PORT"], "ANY", "needs a shell"),
        (["CMD_CYCLE_OPEN iptables -D INPUT -s $IP -p tcp --dport 22 -j ACCEPT"], "ANY", "opens nothing"),
    ],
)
def test_a_stanza_that_would_let_in_others_is_left_out_whole(settings: list[str], source: str, said: str) -> None:
    outcome = fwknop(*settings, source=source)
    assert not outcome.rules
    assert any(said in text for text in outcome.said(1))
    assert 1 in outcome.lost()


@pytest.mark.parametrize(
    "setting",
    [
        "DESTINATION 192.0.2.1",
        "MAX_FW_TIMEOUT 600",
        "ENABLE_CMD_EXEC Y",
        "REQUIRE_USERNAME alice",
        "REQUIRE_SOURCE_ADDRESS Y",
        "REQUIRE_SOURCE y",
        "FORCE_NAT 10.0.0.5 22",
        "%include /etc/fwknop/more.conf",
        "%include_keys /etc/fwknop/keys.conf",
    ],
)
def test_a_setting_without_counterpart_is_named(setting: str) -> None:
    outcome = fwknop("OPEN_PORTS tcp/22", setting)
    assert len(outcome.rules) == 1
    (text,) = outcome.said(5)
    assert setting.split(" ")[0] in text
    assert outcome.lost() == {5}


@pytest.mark.parametrize("line", ["passw0rd", "UNKNOWN passw0rd", "passw0rd is it", "OPEN_PORTS"])
def test_what_is_no_setting_is_named_by_its_line_alone(line: str) -> None:
    outcome = fwknop("OPEN_PORTS tcp/22", line)
    assert outcome.lost() == {5}
    assert "passw0rd" not in str(outcome.remarks)


@pytest.mark.parametrize(
    "line",
    ["# a comment", "  # too", "; and this", "ENABLE_CMD_EXEC N", "GPG_REQUIRE_SIG Y", "HMAC_DIGEST_TYPE sha256", ""],
)
def test_what_means_nothing_here_is_passed_over(line: str) -> None:
    assert {remark.line for remark in fwknop("OPEN_PORTS tcp/22", line).remarks} == {2}


def test_a_setting_in_front_of_all_stanzas_is_named() -> None:
    outcome = import_text(Kind.FWKNOP, "KEY x\nSOURCE ANY\nOPEN_PORTS tcp/22\n")
    assert len(outcome.rules) == 1
    assert outcome.lost() == {1}
    # Without a key's line, what is said of keys stands at the stanza's.
    assert "--tag FW1" in outcome.said(2)[0]


def test_every_stanza_has_a_tag_of_its_own() -> None:
    outcome = import_text(Kind.FWKNOP, "SOURCE ANY\nOPEN_PORTS tcp/22\n" * 120)
    assert len({rule.tag for rule in outcome.rules.values()}) == 120


def test_a_cycle_of_firewall_commands_opens_ports() -> None:
    command = "/sbin/iptables -A INPUT -s $SRC -p $PROTO --dport $PORT -j ACCEPT"
    outcome = fwknop(
        "OPEN_PORTS tcp/22,tcp/8080",
        f"CMD_CYCLE_OPEN {command}",
        f"CMD_CYCLE_CLOSE {command.replace('-A', '-D')}",
        "CMD_CYCLE_TIMER 45",
    )
    (rule,) = outcome.rules.values()
    assert (rule.describe_services(), rule.window) == ("22,8080/tcp", 45)
    assert {remark.line for remark in outcome.remarks} == {2}


def test_a_cycle_of_other_programs_becomes_the_rules_commands() -> None:
    outcome = fwknop("CMD_CYCLE_OPEN /usr/bin/open now", "CMD_CYCLE_CLOSE /usr/bin/close now", "CMD_CYCLE_TIMER 45")
    (rule,) = outcome.rules.values()
    assert rule.trigger == Trigger(("/usr/bin/open", "now"), ("/usr/bin/close", "now"), "root")
    assert rule.window == 45
    assert "root" in outcome.said(4)[0]


def test_a_cycle_without_its_close_opens_for_its_time() -> None:
    outcome = fwknop("CMD_CYCLE_OPEN /usr/bin/open now", "CMD_CYCLE_TIMER 45")
    (rule,) = outcome.rules.values()
    assert (rule.trigger.close_command, rule.window) == ((), 45)
    assert outcome.lost() == set()


def test_what_a_cycle_loses_is_named() -> None:
    opens = "iptables -A INPUT -p tcp --dport 22 -s $IP/24 -j ACCEPT; logger open"
    outcome = fwknop(f"CMD_CYCLE_OPEN {opens.partition(';')[0]}", "CMD_CYCLE_CLOSE NONE", "CMD_CYCLE_TIMER 45")
    (rule,) = outcome.rules.values()
    assert rule.prefixes.ipv4 == 24
    assert "NONE" in outcome.said(5)[0]
    outcome = fwknop(f"CMD_CYCLE_OPEN {opens.replace('; ', ' && ').replace('-s $IP/24', '')}", "CMD_CYCLE_CLOSE x")
    assert any("something else, too" in text for text in outcome.said(4))
    assert any("for everybody" in text for text in outcome.said(4))
    assert "absolute path" in outcome.said(5)[0]
    assert outcome.lost() == {4, 5}
