"""The direction of imports, and who alone may import what."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import nfpkd

PACKAGE = Path(nfpkd.__file__).parent

# From the bottom up: a module may import what stands in its own layer or below.
LAYERS = [
    {"errors"},
    # Vocabulary: what things are.
    {
        "text",
        "rules.model",
        "rules.positions",
        "firewall.netlink",
        "firewall.nft",
        "knock.wire",
        "triggers.message",
        "verifier.packet",
        "verifier.replay",
        "verifier.ratelimit",
    },
    # Policy: what follows from what.  Pure.
    {
        "rules.build",
        "rules.lint",
        "firewall.doors",
        "firewall.layout",
        "firewall.foreign",
        "firewall.state",
        "firewall.ruleset",
        "firewall.rollback",
        "importing.commands",
        "importing.fwknop",
        "importing.iptables",
        "importing.kinds",
        "importing.knockd",
        "importing.model",
        "importing.netfilter",
        "importing.nf_pkd",
        "importing.secret",
        "verifier.judge",
        "verifier.ledger",
        "describe",
    },
    # Adapters: the kernel, files, sockets.
    {
        "logs",
        "journal",
        "instance",
        "notify",
        "privileges",
        "confirmation",
        "rules.schema",
        "rules.loader",
        "rules.watch",
        "firewall.channel",
        "firewall.compat",
        "firewall.elements",
        "firewall.kernel",
        "last_good",
        "firewall.monitor",
        "firewall.outline",
        "firewall.sessions",
        "firewall.firewall",
        "knock.client",
        "knock.connect",
        "knock.keys",
        "knock.profiles",
        "knock.relay",
        "triggers.client",
        "triggers.command",
        "verifier.listeners",
        "verifier.queue",
        "verifier.store",
        "demo.namespaces",
        "demo.process",
        "metrics",
        "status",
    },
    # Whole programs, and what only they are made of.
    {
        "daemon",
        "demo.story",
        "doctor.checks",
        "doctor.facts",
        "triggers.helper",
        "triggers.windows",
        "verifier.repair",
        "verifier.verifier",
    },
    {"cli.completion", "cli.progress", "cli.shared"},
    {"cli.client", "cli.doctor", "cli.guard", "cli.importing", "cli.people", "cli.rules"},
    {"__main__"},
]
# The schema is read by jsonschema, but what it says of a document is policy.
EXCEPTIONS = {("rules.build", "rules.schema"), ("importing.nf_pkd", "rules.schema")}

SOLE_IMPORTERS = {
    "nftables": "firewall.kernel",
    "netfilterqueue": "verifier.queue",
    "watchdog": "rules.watch",
    "jsonschema": "rules.schema",
}

# What has no business in a core that does no I/O and reads no clock.
IMPURE = {"asyncio", "os", "pathlib", "random", "secrets", "socket", "subprocess", "threading", "time"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def level(module: str) -> int:
    (found,) = [index for index, layer in enumerate(LAYERS) if module in layer]
    return found


def test_every_module_has_its_layer() -> None:
    assert set().union(*LAYERS) == MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module: str) -> None:
    ours = {name.removeprefix("nfpkd.") for name in imported(MODULES[module])} & MODULES.keys()
    upwards = {other for other in ours if level(other) > level(module) and (module, other) not in EXCEPTIONS}
    assert not upwards


@pytest.mark.parametrize(("library", "owner"), SOLE_IMPORTERS.items())
def test_each_library_has_one_importer(library: str, owner: str) -> None:
    importers = {
        module for module, path in MODULES.items() if library in {name.split(".")[0] for name in imported(path)}
    }
    assert importers == {owner}


def test_only_the_commands_print_and_prompt() -> None:
    importers = {module for module, path in MODULES.items() if "click" in imported(path)}
    assert importers
    assert all(module.startswith("cli.") for module in importers)


@pytest.mark.parametrize("module", sorted(LAYERS[1] | LAYERS[2]))
def test_the_core_does_no_io_and_reads_no_clock(module: str) -> None:
    assert not {name.split(".")[0] for name in imported(MODULES[module])} & IMPURE
