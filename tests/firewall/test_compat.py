from __future__ import annotations

import errno
from typing import Any

import pytest

from nfpkd.firewall import nft
from nfpkd.firewall.channel import Channel
from nfpkd.firewall.compat import CompatQueue
from nfpkd.firewall.kernel import NftablesKernel
from nfpkd.firewall.nft import Chain, Json, Table, Transaction

HOUSE = Table("inet", "house")


@pytest.fixture
def queue(real_kernel: NftablesKernel) -> CompatQueue:
    made = CompatQueue(real_kernel._channel)
    if not made.is_supported():
        pytest.skip("this kernel has no nft_compat or no xt_NFQUEUE")
    real_kernel.apply(Transaction((nft.add_table(HOUSE), nft.add(Chain(HOUSE, "door")))))
    return made


def rules(kernel: NftablesKernel) -> list[Json]:
    return [entry["rule"] for entry in kernel.list(HOUSE) or [] if "rule" in entry]


@pytest.mark.netns
@pytest.mark.parametrize("comment", ["queue 7", "ü" * 63])
def test_the_rule_is_listed_as_the_target_with_its_comment(
    queue: CompatQueue, real_kernel: NftablesKernel, comment: str
) -> None:
    queue.add_rule("house", "door", 7, comment)
    [rule] = rules(real_kernel)
    assert (rule["chain"], rule["comment"]) == ("door", comment)
    assert rule["expr"] == [{"xt": {"type": "target", "name": "NFQUEUE"}}]


@pytest.mark.netns
def test_a_rule_may_go_without_comment(queue: CompatQueue, real_kernel: NftablesKernel) -> None:
    queue.add_rule("house", "door", 7, "")
    [rule] = rules(real_kernel)
    assert "comment" not in rule


@pytest.mark.netns
def test_rules_are_appended(queue: CompatQueue, real_kernel: NftablesKernel) -> None:
    for number in (1, 2):
        queue.add_rule("house", "door", number, f"queue {number}")
    assert [rule["comment"] for rule in rules(real_kernel)] == ["queue 1", "queue 2"]


@pytest.mark.netns
@pytest.mark.parametrize(("table", "chain"), [("house", "missing"), ("missing", "door")])
def test_a_refusal_is_raised_and_the_next_rule_is_taken(
    queue: CompatQueue, real_kernel: NftablesKernel, table: str, chain: str
) -> None:
    with pytest.raises(FileNotFoundError):
        queue.add_rule(table, chain, 7, "")
    queue.add_rule("house", "door", 8, "queue 8")
    assert [rule["comment"] for rule in rules(real_kernel)] == ["queue 8"]


@pytest.mark.netns
def test_asking_for_support_leaves_nothing_behind(queue: CompatQueue, real_kernel: NftablesKernel) -> None:
    before = real_kernel._ask({"list": {"tables": None}})
    assert queue.is_supported()
    assert real_kernel._ask({"list": {"tables": None}}) == before


def test_a_refused_question_means_no_support(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "not allowed")

    monkeypatch.setattr(Channel, "send_batch", refuse)
    assert not CompatQueue(Channel()).is_supported()
