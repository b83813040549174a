from __future__ import annotations

from typing import Any

import pytest
from support.fake_kernel import FakeKernel

from nfpkd.firewall import layout, nft
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Chain, Json, Rule, Set, Transaction
from nfpkd.rules.model import Reject


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


def test_chains_of_data_are_empty() -> None:
    assert rules(layout.TAGS) == []
    assert rules(layout.VERIFY) == []


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
            assert len(declaration.statements) == 1


def test_the_fingerprint_is_last_and_harmless() -> None:
    last = layout.declarations()[-1]
    assert isinstance(last, Rule)
    assert (last.chain, last.statements) == ("guard", (nft.RETURN,))
    assert last.comment.startswith("layout ")


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
    assert layout.rule_comments() == listed


def test_every_comment_fits() -> None:
    comments = [getattr(d, "comment", "") for d in layout.declarations()]
    assert all(nft.clean_comment(comment) == comment for comment in comments)


def test_tag_rule_names_the_tags_as_numbers_in_order() -> None:
    matching, verdict = layout.tag_rule(frozenset({b"PKD1", b"PKD0", b"\0\0\0\x01"})).statements
    assert matching["match"]["right"] == {"set": [1, 0x504B4430, 0x504B4431]}
    assert matching["match"]["left"] == nft.raw_payload("th", 64, 32)
    assert verdict == nft.goto("knock")


def test_queue_rule_holds_nothing_but_the_queue_statement() -> None:
    rule = layout.queue_rule(7)
    assert (rule.chain, rule.statements, rule.comment) == (layout.VERIFY, (nft.queue_bypass(7),), "queue 7")
