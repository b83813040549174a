"""The seam to libnftables, on a binding that the tests write; the real one is in test_kernel_contract."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from nfpkd.errors import KernelError, NetlinkError
from nfpkd.firewall import kernel as kernel_module
from nfpkd.firewall import layout, nft
from nfpkd.firewall.kernel import NftablesKernel
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Json, Table, Transaction

QUEUE_RULE = nft.add(layout.queue_rule(7))
PLAIN = nft.flush_chain(TABLE, layout.VERIFY)


class Binding:
    """Stands in for nftables.Nftables: *refuses* gives the text of an error, or nothing."""

    def __init__(self) -> None:
        self.refuses: Callable[[list[Json]], str] = lambda _: ""
        self.answers: dict[str, list[Json]] = {}
        self.done: list[list[Json]] = []
        self.checked: list[list[Json]] = []
        self.dry_run = False
        self.garbled: str | None = None

    def set_json_output(self, _: bool) -> None:
        pass

    def set_numeric_proto_output(self, _: bool) -> None:
        pass

    def set_dry_run(self, wanted: bool) -> None:
        self.dry_run = wanted

    def cmd(self, text: str) -> tuple[int, str, str]:
        commands: list[Json] = json.loads(text)["nftables"]
        (self.checked if self.dry_run else self.done).append(commands)
        if error := self.refuses(commands):
            return -1, "", error
        if self.garbled is not None:
            return 0, self.garbled, ""
        listed = next(iter(commands[0].get("list", {"": None}))) if commands else ""
        return 0, json.dumps({"nftables": self.answers.get(listed, [])}), ""


class Compat:
    """Stands in for CompatQueue."""

    supported = True
    refusal: OSError | None = None

    def __init__(self) -> None:
        self.added: list[tuple[str, str, int, str]] = []

    def is_supported(self) -> bool:
        return self.supported

    def add_rule(self, table: str, chain: str, number: int, comment: str) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.added.append((table, chain, number, comment))


def refuse_queue(commands: list[Json]) -> str:
    return "No such file or directory" if '"queue"' in json.dumps(commands) else ""


@pytest.fixture
def binding(monkeypatch: pytest.MonkeyPatch) -> Binding:
    made = Binding()
    module = ModuleType("nftables")
    module.Nftables = lambda: made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nftables", module)
    monkeypatch.setattr(kernel_module, "has_net_admin", lambda: True)
    return made


@pytest.fixture
def compat(monkeypatch: pytest.MonkeyPatch) -> Compat:
    made = Compat()
    monkeypatch.setattr(kernel_module, "CompatQueue", lambda _: made)
    return made


@pytest.fixture
def kernel(binding: Binding, compat: Compat) -> NftablesKernel:  # noqa: ARG001
    return NftablesKernel()


def test_a_missing_binding_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nftables", None)
    with pytest.raises(KernelError) as caught:
        NftablesKernel()
    assert "python3-nftables" in caught.value.remedy
    assert "--system-site-packages" in caught.value.remedy


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("libnftables.so.1: cannot open shared object file")

    module = ModuleType("nftables")
    module.Nftables = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nftables", module)
    with pytest.raises(KernelError) as caught:
        NftablesKernel()
    assert "libnftables.so.1" in caught.value.reason
    assert "libnftables1" in caught.value.remedy


def test_a_missing_privilege_is_told_from_a_refusal(
    kernel: NftablesKernel, binding: Binding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_module, "has_net_admin", lambda: False)
    binding.refuses = lambda _: "internal:0:0-0: Error: Could not process rule: Operation not permitted"
    with pytest.raises(KernelError) as caught:
        kernel.apply(Transaction((PLAIN,)))
    assert "CAP_NET_ADMIN" in caught.value.remedy
    assert "Could not process" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("internal:0:0-0: Error: No such file or directory\n\n\n", "No such file or directory"),
        ("\ninternal:0:0-0: Could not process rule: File exists\nmore", "Could not process rule: File exists"),
        ("", "no reason given"),
        ("\n \n", "no reason given"),
    ],
)
def test_a_refusal_is_told_by_its_first_line(
    kernel: NftablesKernel, monkeypatch: pytest.MonkeyPatch, error: str, shown: str
) -> None:
    monkeypatch.setattr(kernel._nft, "cmd", lambda _: (-1, "", error))
    with pytest.raises(KernelError) as caught:
        kernel.apply(Transaction((PLAIN,)))
    assert caught.value.reason.endswith(f": {shown}")


# check and list


def test_check_is_a_dry_run(kernel: NftablesKernel, binding: Binding) -> None:
    kernel.check(Transaction((PLAIN,)))
    assert (binding.checked, binding.done) == ([[PLAIN]], [])


def test_a_refused_check_ends_the_dry_run(kernel: NftablesKernel, binding: Binding) -> None:
    binding.refuses = lambda _: "refused"
    with pytest.raises(KernelError):
        kernel.check(Transaction((PLAIN,)))
    assert not binding.dry_run


@pytest.mark.parametrize(("family", "there"), [("ip", False), ("inet", True)])
def test_a_table_that_cannot_be_listed_is_missing_only_if_it_has_no_chains(
    kernel: NftablesKernel, binding: Binding, family: str, there: bool
) -> None:
    binding.refuses = lambda commands: "refused" if "table" in commands[0]["list"] else ""
    binding.answers["chains"] = [{"metainfo": {}}, {"chain": {"family": family, "table": TABLE.name, "name": "guard"}}]
    if there:
        with pytest.raises(KernelError):
            kernel.list(TABLE)
    else:
        assert kernel.list(TABLE) is None


def test_list_returns_the_objects_of_the_table_and_asks_for_no_other(kernel: NftablesKernel, binding: Binding) -> None:
    binding.answers = {"table": [{"table": {**TABLE._asdict(), "handle": 1}}, {"chain": {"name": "guard"}}]}
    assert kernel.list(TABLE) == binding.answers["table"]
    assert binding.done == [[nft.list_table(TABLE)]]


def test_list_passes_on_a_refusal(kernel: NftablesKernel, binding: Binding) -> None:
    binding.refuses = lambda _: "refused"
    with pytest.raises(KernelError):
        kernel.list(Table("inet", "any"))


# Queue rules


def test_a_kernel_with_the_queue_statement_gets_the_transaction_as_it_is(
    kernel: NftablesKernel, binding: Binding, compat: Compat
) -> None:
    kernel.apply(Transaction((PLAIN, QUEUE_RULE)))
    assert binding.done == [[PLAIN, QUEUE_RULE]]
    assert compat.added == []


def test_without_the_statement_the_rule_goes_through_nft_compat(
    kernel: NftablesKernel, binding: Binding, compat: Compat
) -> None:
    binding.refuses = refuse_queue
    kernel.apply(Transaction((PLAIN, QUEUE_RULE)))
    assert binding.done == [[PLAIN]]
    assert compat.added == [("nfpkd", "verify", 7, "queue 7")]


def test_without_the_statement_a_check_leaves_the_rule_out(
    kernel: NftablesKernel, binding: Binding, compat: Compat
) -> None:
    binding.refuses = refuse_queue
    kernel.check(Transaction((PLAIN, QUEUE_RULE)))
    assert binding.checked[-1] == [PLAIN]
    assert (binding.done, compat.added) == ([], [])


def test_nft_compats_refusal_says_which_module_is_missing(
    kernel: NftablesKernel, binding: Binding, compat: Compat
) -> None:
    binding.refuses = refuse_queue
    compat.refusal = FileNotFoundError(2, "No such file or directory")
    with pytest.raises(KernelError) as caught:
        kernel.apply(Transaction((PLAIN, QUEUE_RULE)))
    assert "xt_NFQUEUE" in caught.value.remedy


def test_a_refused_transaction_adds_no_queue_rule(kernel: NftablesKernel, binding: Binding, compat: Compat) -> None:
    binding.refuses = lambda commands: refuse_queue(commands) or ("refused" if not binding.dry_run else "")
    with pytest.raises(KernelError):
        kernel.apply(Transaction((PLAIN, QUEUE_RULE)))
    assert compat.added == []


def test_a_kernel_that_cannot_queue_at_all_is_left_as_it_is(
    kernel: NftablesKernel, binding: Binding, compat: Compat
) -> None:
    binding.refuses = refuse_queue
    compat.supported = False
    with pytest.raises(KernelError) as caught:
        kernel.apply(Transaction((PLAIN, QUEUE_RULE)))
    assert "nft_queue" in caught.value.remedy
    assert binding.done == []


@pytest.mark.parametrize("garbled", ["", '{"nftables": [', '{"nftables": [{"table": {"flags": "\\ud8"}}]}'])
def test_an_answer_that_is_no_json_is_refused_with_a_remedy(
    kernel: NftablesKernel, binding: Binding, garbled: str
) -> None:
    """nft 1.0.6 lists the flags of a table from memory that it has freed."""
    binding.garbled = garbled
    with pytest.raises(KernelError, match="one has flags") as caught:
        kernel.read("chains")
    assert "install a newer libnftables" in caught.value.remedy


def test_the_kernel_is_asked_once_whether_it_can_queue(kernel: NftablesKernel, binding: Binding) -> None:
    for _ in range(2):
        kernel.apply(Transaction((QUEUE_RULE,)))
    probes = [commands for commands in binding.checked if '"queue"' in json.dumps(commands)]
    assert len(probes) == 1


def test_a_transaction_without_queue_rules_asks_nothing(kernel: NftablesKernel, binding: Binding) -> None:
    kernel.apply(Transaction((PLAIN,)))
    assert binding.checked == []


def test_a_missing_privilege_is_not_taken_for_a_missing_statement(
    kernel: NftablesKernel, binding: Binding, compat: Compat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_module, "has_net_admin", lambda: False)
    binding.refuses = lambda _: "Operation not permitted"
    compat.supported = False
    with pytest.raises(KernelError) as caught:
        kernel.check(Transaction((QUEUE_RULE,)))
    assert "CAP_NET_ADMIN" in caught.value.remedy


def test_libnftables_is_asked_for_numbers_and_json(monkeypatch: pytest.MonkeyPatch, binding: Binding) -> None:
    wanted: list[Any] = []
    monkeypatch.setattr(binding, "set_json_output", lambda on: wanted.append(("json", on)))
    monkeypatch.setattr(binding, "set_numeric_proto_output", lambda on: wanted.append(("numeric", on)))
    NftablesKernel()
    assert sorted(wanted) == [("json", True), ("numeric", True)]


# A survey


@pytest.mark.parametrize("trouble", [NetlinkError("it changed while it was read"), KernelError("no such set")])
def test_a_survey_of_what_changes_meanwhile_is_made_again(
    kernel: NftablesKernel, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    answers: list[Exception | list[Json]] = [trouble, [{"set": {"name": "flood"}}]]

    def read(*_: object) -> list[Json]:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(kernel_module, "read_outline", read)
    assert kernel.survey(TABLE, {"flood"}) == [{"set": {"name": "flood"}}]
    answers[:] = [trouble] * 10
    with pytest.raises(KernelError, match="cannot be read"):
        kernel.survey(TABLE, ())


def test_a_survey_passes_on_a_refusal(kernel: NftablesKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> list[Json]:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(kernel_module, "read_outline", refuse)
    with pytest.raises(KernelError, match="Operation not permitted"):
        kernel.survey(TABLE, ())
