from __future__ import annotations

from typing import Any

import pytest

from nfpkd.firewall import layout, nft
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Chain, Json, Rule, Set, Transaction
from nfpkd.rules.model import PortRange, Reject
from support.fake_kernel import FakeKernel


@pytest.fixture
def listing() -> list[Json]:
    kernel = FakeKernel()
    kernel.apply(Transaction((nft.add_table(TABLE), *map(nft.add, layout.declarations()))))
    found = kernel.list(TABLE)
    assert found is not None
    return found


def sets() -> list[Set]:
    return [d for d in layout.declarations() if isinstance(d, Set)]


def rules(chain: str) -> list[Rule]:
    return [d for d in layout.declarations() if isinstance(d, Rule) and d.chain == chain]


def test_the_kernel_takes_the_declarations_in_their_order(listing: list[Json]) -> None:
    listed = [entry["rule"] for entry in listing if "rule" in entry]
    assert len(listed) == sum(isinstance(d, Rule) for d in layout.declarations())


def test_the_queue_stands_behind_conntrack_and_the_guard_behind_the_queue_and_before_dnat() -> None:
    base = {d.name: d.priority for d in layout.declarations() if isinstance(d, Chain) and d.hook}
    assert -200 < base["knocks"] < base["guard"] < -100
    assert base.keys() == {"knocks", "guard"}


def test_no_set_is_an_interval_set() -> None:
    # They leak packets while they change.
    assert all("interval" not in found.flags for found in sets())


def test_whatever_runs_out_has_a_capacity() -> None:
    assert all(found.size for found in sets() if "timeout" in found.flags)
    timed = {found.name for found in sets() if "timeout" in found.flags}
    assert timed >= {*layout.GRANTS.values(), *layout.SESSIONS.values(), *layout.KNOCKING.values()}


@pytest.mark.parametrize("chain", layout.DATA_CHAINS)
def test_chains_of_data_are_empty(chain: str) -> None:
    assert rules(chain) == []


def test_the_gate_ends_with_refusal() -> None:
    *_, by_rule, last = rules("gate")
    assert by_rule.statements[0]["vmap"]["data"] == f"@{layout.REJECTS}"
    assert last.statements == (nft.DROP,)


def test_every_way_to_reject_but_silence_has_a_chain_that_rejects() -> None:
    assert layout.REFUSALS.keys() == set(Reject) - {Reject.DROP}
    for chain in layout.REFUSALS.values():
        assert "reject" in rules(chain)[-1].statements[-1]


def test_updates_from_the_packet_path_stand_alone() -> None:
    # On a full set, update ends the rule it stands in.
    for declaration in layout.declarations():
        if isinstance(declaration, Rule) and any("set" in statement for statement in declaration.statements):
            *before, _ = next(
                declaration.statements[: place + 1]
                for place, statement in enumerate(declaration.statements)
                if "set" in statement
            )
            assert before == []
            # What follows is for those over a limit, which a source without room in the set never is.
            if len(declaration.statements) > 1:
                assert "stmt" in declaration.statements[0]["set"]


def test_a_source_is_limited_before_the_verifier_is_asked() -> None:
    comments = [rule.comment for rule in rules("knock")]
    assert comments.index("too many from one source") < comments.index("ask the verifier")
    limited = [rule for rule in rules("knock") if rule.comment == "too many from one source"]
    assert [rule.statements[0]["set"]["set"] for rule in limited] == ["@flooding4", "@flooding6"]
    assert all(rule.statements[-1] == nft.RETURN for rule in limited)


def test_the_gate_lets_in_before_it_refuses() -> None:
    comments = [rule.comment for rule in rules("gate")]
    refusal = comments.index("the rest is refused")
    # What belongs to a connection is let in before anything is looked up; a route, which costs most, comes last.
    cheap = ["answers to this host", "established connections stay", *["granted by a knock"] * 2]
    assert comments[:5] == [*cheap, "not for this host"]
    assert max(comments.index(c) for c in ("from where everything is let in", "other kinds of grants")) < refusal


def test_the_fingerprint_is_last_and_harmless() -> None:
    last = layout.declarations()[-1]
    assert isinstance(last, Rule)
    assert (last.chain, last.statements) == ("guard", (nft.RETURN,))
    assert layout.parse_source_limit(last.comment) == layout.DEFAULT_SOURCE_LIMIT


@pytest.mark.parametrize("limit", [1, 20, 1_000_000])
def test_the_source_limit_is_part_of_the_layout(limit: int) -> None:
    last = layout.declarations(limit)[-1]
    assert isinstance(last, Rule)
    assert layout.parse_source_limit(last.comment) == limit
    assert layout.rule_comments(limit)["guard"][-1] == last.comment


@pytest.mark.parametrize("comment", ["", "layout 0123456789ab", "layout xyz limit 5", "layout 0123456789ab limit -5"])
def test_other_comments_tell_no_limit(comment: str) -> None:
    assert layout.parse_source_limit(comment) is None


def test_the_fingerprint_tells_another_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    before: Any = layout.declarations()[-1]
    monkeypatch.setattr(layout, "MAX_GRANTS", 5)
    after: Any = layout.declarations.__wrapped__()[-1]
    assert before.comment != after.comment


def test_rule_comments_are_what_an_untouched_table_lists(listing: list[Json]) -> None:
    listed: dict[str, tuple[str, ...]] = {}
    for entry in listing:
        if "rule" in entry:
            rule = entry["rule"]
            listed[rule["chain"]] = (*listed.get(rule["chain"], ()), rule["comment"])
    assert layout.rule_comments(layout.DEFAULT_SOURCE_LIMIT) == listed


def test_every_comment_fits() -> None:
    comments = [getattr(d, "comment", "") for d in layout.declarations()]
    assert all(nft.clean_comment(comment) == comment for comment in comments)


def test_tag_rules_name_the_tags_as_numbers_in_order() -> None:
    [rule] = layout.tag_rules({(): frozenset({b"PKD1", b"PKD0", b"\0\0\0\x01"})})
    matching, verdict = rule.statements
    assert matching["match"]["right"] == {"set": [1, 0x504B4430, 0x504B4431]}
    assert matching["match"]["left"] == nft.raw_payload("th", 64, 32)
    assert verdict == nft.goto("knock")


def test_tag_rules_name_the_ports_that_knocks_are_taken_at() -> None:
    at = (PortRange(5, 5), PortRange(7, 9))
    anywhere, somewhere = layout.tag_rules({at: frozenset({b"PKD1"}), (): frozenset({b"PKD0"})})
    assert len(anywhere.statements) == 2
    assert somewhere.statements[0]["match"]["right"] == {"set": [5, {"range": [7, 9]}]}
    assert somewhere.statements[1]["match"]["right"] == {"set": [0x504B4431]}
    assert anywhere.comment != somewhere.comment


def test_no_tags_need_no_rule() -> None:
    assert list(layout.tag_rules({})) == []


def test_trusted_interfaces_share_a_rule_whatever_their_order() -> None:
    [rule] = layout.trusted_rules(["lo", "eth0", "lo"])
    assert rule.statements[0]["match"]["right"] == {"set": ["eth0", "lo"]}
    assert rule.statements[-1] == nft.ACCEPT
    assert [rule] == list(layout.trusted_rules(["eth0", "lo"]))
    assert list(layout.trusted_rules([])) == []


def test_interfaces_are_looked_at_only_where_they_matter() -> None:
    [rule] = layout.interface_rules(in_use=True)
    assert rule.statements[-1] == nft.goto("gate")
    assert list(layout.interface_rules(in_use=False)) == []


def test_a_change_in_a_data_rule_shows_in_its_comment() -> None:
    one, other = (layout.data_rule(layout.DOORS, "a door", verdict).comment for verdict in (nft.ACCEPT, nft.DROP))
    assert one != other
    assert one == layout.data_rule(layout.DOORS, "a door", nft.ACCEPT).comment
    assert nft.clean_comment(one) == one


def test_queue_rule_holds_nothing_but_the_queue_statement() -> None:
    rule = layout.queue_rule(7)
    assert (rule.chain, rule.statements, rule.comment) == (layout.VERIFY, (nft.queue_bypass(7),), "queue 7")
