"""The seam to the kernel, in four verbs; alone imports nftables."""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol

from nfpkd.errors import KernelError, NetlinkError
from nfpkd.firewall import nft
from nfpkd.firewall.channel import Channel, Message
from nfpkd.firewall.compat import CompatQueue
from nfpkd.firewall.elements import pack_grants
from nfpkd.firewall.nft import Json, Table, Transaction
from nfpkd.firewall.outline import read_outline
from nfpkd.privileges import has_net_admin

_PRIVILEGE_REMEDY = "nfpkd needs CAP_NET_ADMIN: run it with sudo"
_QUEUE_REMEDY = (
    "load or install the module nft_queue, or nft_compat and xt_NFQUEUE "
    "(on Debian they are in linux-image-amd64, not in the cloud kernel)"
)

# What is read in parts is read again if it changed in between.
_ATTEMPTS = 5

# Spelled out here because the verb `list` hides the type inside the classes below.
Listing = list[Json]


class Kernel(Protocol):
    """What nfpkd asks of nf_tables.  Every verb raises KernelError for a refusal."""

    def check(self, transaction: Transaction) -> None:
        """Have the kernel check *transaction* without doing it."""
        ...

    def apply(self, transaction: Transaction) -> None:
        """Do all of *transaction*, or nothing."""
        ...

    def list(self, table: Table) -> Listing | None:
        """Return the objects of *table* as nft lists them, or None if there is no such table."""
        ...

    def survey(self, table: Table, passed_over: Collection[str]) -> Listing | None:
        """Return what `list` does, in no time: sets *passed_over* come without their elements.

        Of chains, sets and rules only what tells them apart is listed: names and comments,
        and of what statements are only what they are called.
        """
        ...


class NftablesKernel:
    """The real kernel, through libnftables; made and used in one network namespace.

    Where the kernel has no queue statement, queue rules are left out of
    transactions and added right behind them through nft_compat: for that
    instant knocks go unheard, and no gate is open.
    """

    def __init__(self) -> None:
        """Open libnftables; raises KernelError if it is not installed."""
        try:
            import nftables
        except ImportError:
            raise KernelError(
                "Python's nftables module is missing",
                "install python3-nftables from the distribution, and make virtual environments with "
                '"/usr/bin/python3 -m venv --system-site-packages"',
            ) from None
        try:
            self._nft: Any = nftables.Nftables()
        except OSError as error:
            raise KernelError(f"libnftables cannot be loaded: {error}", "install libnftables1") from None
        self._nft.set_json_output(True)
        # Names of protocols come from /etc/protocols, which a small host need not have.
        self._nft.set_numeric_proto_output(True)
        # One context used by two threads at once crashes.
        self._lock = threading.RLock()
        try:
            self._channel = Channel()
        except OSError as error:
            raise KernelError(f"this kernel cannot be asked about its firewall: {error.strerror}") from None
        self._compat = CompatQueue(self._channel)

    def check(self, transaction: Transaction) -> None:
        with self._lock:
            commands, _ = self._split_queue_rules(transaction)
            self._check(commands)

    def apply(self, transaction: Transaction) -> None:
        grants = pack_grants(transaction.commands)
        with self._lock:
            if grants is not None:
                self._send(grants)
                return
            commands, queue_rules = self._split_queue_rules(transaction)
            self._run(commands)
            for rule in queue_rules:
                number = rule["expr"][0]["queue"]["num"]
                try:
                    self._compat.add_rule(rule["table"], rule["chain"], number, rule.get("comment", ""))
                except OSError as error:
                    raise KernelError(f"the kernel refused the queue rule: {error.strerror}", _QUEUE_REMEDY) from None

    def list(self, table: Table) -> Listing | None:
        with self._lock:
            try:
                return self._ask(nft.list_table(table))
            except KernelError:
                # The list of tables would tell directly that there is none of this name, but see `read`.
                owner = {"family": table.family, "table": table.name}
                if any(entry.get("chain", {}).items() >= owner.items() for entry in self.read("chains")):
                    raise
                return None

    def survey(self, table: Table, passed_over: Collection[str]) -> Listing | None:
        with self._lock:
            for left in reversed(range(_ATTEMPTS)):
                try:
                    return self._survey(table, passed_over)
                except (NetlinkError, KernelError) as error:
                    # Somebody changed it meanwhile.
                    if not left:
                        raise KernelError(f"the table cannot be read: {error}") from None
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _send(self, messages: Sequence[Message]) -> None:
        try:
            self._channel.send_batch(messages)
        except OSError as error:
            raise _refusal(error.strerror or str(error)) from None

    def _survey(self, table: Table, passed_over: Collection[str]) -> Listing | None:
        try:
            outline = read_outline(self._channel, table)
        except OSError as error:
            raise _refusal(error.strerror or str(error)) from None
        for entry in outline or ():
            for kind in entry.keys() & {"set", "map"}:
                name = entry[kind]["name"]
                if name not in passed_over:
                    (listed,) = (found for found in self._ask(nft.list_set(table, kind, name)) if kind in found)
                    entry[kind] = listed[kind]
        return outline

    def read(self, kind: str, described: Json | None = None) -> Listing:
        """Return what ``nft list KIND`` shows, of any table; raises KernelError.

        Not for tables or the whole ruleset: nft 1.0.6 uses freed memory for
        the JSON of a table with flags, and other tools set some.
        """
        with self._lock:
            return self._ask({"list": {kind: described}})

    @functools.cached_property
    def has_queue_statement(self) -> bool:
        """Whether the kernel takes ``queue num N bypass`` itself; asked once, without changing anything."""
        probe = Table("inet", "nfpkd-probe")
        chain = nft.Chain(probe, "probe")
        made = (nft.add_table(probe), nft.add(chain))
        self._check(made)
        try:
            self._check((*made, nft.add(nft.Rule(probe, chain.name, (nft.queue_bypass(0),)))))
        except KernelError:
            if not self._compat.is_supported():
                raise KernelError("this kernel cannot queue packets", _QUEUE_REMEDY) from None
            return False
        return True

    def _split_queue_rules(self, transaction: Transaction) -> tuple[tuple[Json, ...], Listing]:
        queue_rules = [c["add"]["rule"] for c in transaction.commands if _is_queue_rule(c)]
        if not queue_rules or self.has_queue_statement:
            return transaction.commands, []
        return tuple(c for c in transaction.commands if not _is_queue_rule(c)), queue_rules

    def _check(self, commands: Iterable[Json]) -> None:
        self._nft.set_dry_run(True)
        try:
            self._run(commands)
        finally:
            self._nft.set_dry_run(False)

    def _ask(self, command: Json) -> Listing:
        try:
            answer: Listing = json.loads(self._run([command]))["nftables"]
        except ValueError:
            # nft 1.0.6 uses freed memory for the JSON of tables with flags: what comes may be no JSON, or no text.
            reason = "libnftables cannot list the tables: one has flags"
            remedy = 'install a newer libnftables, or find it with "nft list ruleset" and make it without flags'
            raise KernelError(reason, remedy) from None
        return answer

    def _run(self, commands: Iterable[Json]) -> str:
        code, output, error = self._nft.cmd(json.dumps({"nftables": list(commands)}))
        if code != 0:
            raise _refusal(error)
        return str(output)


def _is_queue_rule(command: Json) -> bool:
    rule = command.get("add", {}).get("rule")
    return rule is not None and any("queue" in statement for statement in rule["expr"])


def _refusal(error: str) -> KernelError:
    if not has_net_admin():
        return KernelError("no privilege to change the firewall", _PRIVILEGE_REMEDY)
    first = next((line for line in error.splitlines() if line.strip()), "no reason given")
    reason = re.sub(r"^internal:\S+ (Error: )?", "", first)
    return KernelError(f"the kernel refused the ruleset: {reason}")
