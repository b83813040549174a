"""Grants by raw netlink are what libnftables would have made of them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from nfpkd.errors import KernelError
from nfpkd.firewall import kernel as kernel_module
from nfpkd.firewall import nft
from nfpkd.firewall.doors import Door, Mode
from nfpkd.firewall.elements import MAX_ELEMENTS, pack_grants
from nfpkd.firewall.kernel import NftablesKernel
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Json, Table, Transaction
from nfpkd.firewall.ruleset import Options, compile_ruleset, delete_grants, renew_grants, transaction_to
from nfpkd.firewall.state import Grant
from nfpkd.rules.model import Protocol, Service

DOORS = [
    Door(family, prefix, mode, 60 if mode is Mode.EXTEND else 0, by_interface)
    for (family, prefix), mode, by_interface in itertools.product(
        [(4, 32), (4, 24), (6, 128), (6, 64)], Mode, [False, True]
    )
]
GRANTS = [
    Grant(source, Service(*service), "a rule: \u00fc", timeout, timeout, None if door.is_usual else door, interface)
    for door in DOORS
    for source in ([f"198.51.{n}.0" for n in (0, 100)] if door.family == 4 else ["2001:db8::", "fe80::"])
    for service, timeout in zip([(Protocol.TCP, 22), (Protocol.SCTP, 65535)], [60, 31_536_000], strict=True)
    for interface in (["eth0", "a-name-15-chars"] if door.by_interface else [""])
]


def elements(kernel: NftablesKernel) -> dict[str, list[Any]]:
    found = [entry["set"] for entry in kernel.list(TABLE) or [] if "set" in entry]
    for entry in found:
        for element in entry.get("elem", []):
            # A second may have passed.
            element["elem"].pop("expires")
    return {entry["name"]: sorted(entry.get("elem", []), key=json.dumps) for entry in found}


@pytest.fixture
def made(real_kernel: NftablesKernel) -> NftablesKernel:
    real_kernel.apply(transaction_to(compile_ruleset([], Options()), None))
    real_kernel.apply(Transaction(tuple(nft.add(door.to_set()) for door in DOORS if not door.is_usual)))
    return real_kernel


@pytest.mark.netns
def test_the_kernel_holds_the_same_either_way(made: NftablesKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = elements(made)
    made.apply(renew_grants(GRANTS))
    raw = elements(made)
    assert sum(map(len, raw.values())) == len(GRANTS)
    made.apply(delete_grants(GRANTS))
    assert elements(made) == empty
    monkeypatch.setattr(kernel_module, "pack_grants", lambda _: None)
    made.apply(renew_grants(GRANTS))
    assert elements(made) == raw


@pytest.mark.netns
def test_a_grant_is_renewed(made: NftablesKernel) -> None:
    for timeout in (60, 90):
        made.apply(renew_grants([GRANTS[0]._replace(timeout=timeout, expires=timeout)]))
    ((element,),) = [found for found in elements(made).values() if found]
    assert element["elem"]["timeout"] == 90


GRANT = nft.concat("192.0.2.1", 6, 22)


@pytest.mark.parametrize(
    "command",
    [
        nft.add_table(TABLE),
        nft.add_elements(TABLE, "gated", [nft.concat(6, 22)]),
        nft.add_elements(TABLE, "knocking4", ["192.0.2.1"]),
        nft.add_elements(Table("inet", "other"), "grants4", [GRANT]),
        nft.add_elements(TABLE, "grants4", [GRANT] * (MAX_ELEMENTS + 1)),
        nft.flush_chain(TABLE, "tags"),
        nft.add_elements(TABLE, "grants4", [nft.concat("192.0.2.1", "tcp", "ssh")]),
        nft.add_elements(TABLE, "grants4", [nft.concat("host.example.org", 6, 22)]),
        nft.add_elements(TABLE, "grants4", [nft.concat("192.0.2.1", 6)]),
        nft.add_elements(TABLE, "grants4", [nft.concat("192.0.2.1", 6, 70000)]),
        nft.add_elements(TABLE, "grants4", ["192.0.2.1"]),
    ],
)
def test_everything_else_is_left_to_libnftables(command: Json) -> None:
    assert pack_grants([command]) is None
    assert pack_grants([nft.add_elements(TABLE, "grants4", [GRANT]), command]) is None


@pytest.mark.netns
def test_a_refusal_undoes_all_of_it(made: NftablesKernel) -> None:
    before = elements(made)
    twice = nft.delete_elements(TABLE, "grants4", [GRANT])
    with pytest.raises(KernelError, match="No such file"):
        made.apply(Transaction((nft.add_elements(TABLE, "grants4", [GRANT]), twice, twice)))
    assert elements(made) == before


@pytest.mark.netns
def test_as_many_as_there_may_be_fit_into_one_message(made: NftablesKernel) -> None:
    many = [
        nft.element(nft.concat(f"2001:db8::{n:x}", 6, 22), timeout=60, expires=60, comment="x" * 127)
        for n in range(MAX_ELEMENTS)
    ]
    made.apply(Transaction((nft.add_elements(TABLE, "grants6", many),)))
    assert len(elements(made)["grants6"]) == MAX_ELEMENTS
