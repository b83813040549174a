"""The firewall as nfpkd's commands use it: plan, apply, grant, read, remove."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from nfpkd.errors import KernelError
from nfpkd.firewall import layout, nft
from nfpkd.firewall.kernel import Kernel
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Table, Transaction
from nfpkd.firewall.ruleset import (
    Options,
    Ruleset,
    admit_sessions,
    compile_ruleset,
    delete_grants,
    delete_table,
    guard_first,
    kept_grants,
    missing_grants,
    renew_grants,
    transaction_to,
)
from nfpkd.firewall.state import Grant, Session, State, parse_state
from nfpkd.rules.model import Rule

# A plan is made from what the kernel held a moment ago.  If another tool changed
# the table meanwhile, it is made again.
_ATTEMPTS = 3


class Applied(NamedTuple):
    """What an `apply` did: *sent* is empty if nothing had to be done, *held* what the kernel held before.

    *grants* are those that are live now.
    """

    sent: Transaction
    held: State | None
    wanted: Ruleset
    grants: tuple[Grant, ...]


class Firewall:
    """nfpkd's table in one kernel.  It keeps no copy of it: what is true is asked of the kernel."""

    def __init__(self, kernel: Kernel, list_sessions: Callable[[], Iterable[Session]]) -> None:
        self._kernel = kernel
        self._list_sessions = list_sessions

    def read_state(self) -> State | None:
        """Return what the kernel holds of ours, or None if there is no table; raises KernelError."""
        listing = self._kernel.survey(TABLE, layout.TRANSIENT)
        return None if listing is None else parse_state(listing)

    def plan(self, rules: Iterable[Rule], options: Options) -> Transaction:
        """Return the transaction that `apply` would send now, checked by the kernel; raises KernelError."""
        transaction = transaction_to(compile_ruleset(rules, options), self.read_state(), self._list_sessions())
        self._kernel.check(transaction)
        return transaction

    def apply(
        self, rules: Sequence[Rule], options: Options, known: Sequence[Grant] = (), *, lost: bool = False
    ) -> Applied:
        """Make the kernel hold *rules*; raises KernelError.

        *known* are grants that should be live.  If there is no table, or if *lost* says
        that another tool had destroyed it, they are made again where they are missing.
        """
        wanted = compile_ruleset(rules, options)
        for attempt in range(_ATTEMPTS):
            before = held = self.read_state()
            first = guard_first(wanted, held)
            try:
                if first:
                    self._kernel.apply(first)
                    held = self.read_state()
                again = missing_grants(wanted, held, known) if lost or held is None else []
                transaction = transaction_to(wanted, held, self._list_sessions(), again)
                if transaction:
                    self._kernel.apply(transaction)
            except KernelError:
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return Applied(transaction, before, wanted, (*kept_grants(wanted, held), *again))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def make_again(self, kept: Transaction) -> bool:
        """Do *kept*, which makes the table on an empty host; return False, and do nothing, if there is one.

        Raises KernelError.  Connections that are open to what is guarded then go on.
        """
        if self.read_state() is not None:
            return False
        self._kernel.apply(kept)
        held = self.read_state()
        admitted = admit_sessions(held, self._list_sessions()) if held else Transaction()
        if admitted:
            self._kernel.apply(admitted)
        return True

    def grant(self, grants: Sequence[Grant]) -> None:
        """Open what *grants* say, from now for their whole timeout, in one transaction; raises KernelError."""
        if grants:
            self._kernel.apply(renew_grants(grants))

    def revoke(self, rule: str = "", address: str = "") -> tuple[Grant, ...]:
        """Take back the grants of *rule*, of whoever has *address*, or both; empty means all.

        Returns what was taken back; raises KernelError.  Open connections go on.
        """
        state = self.read_state()
        found = tuple(
            grant
            for grant in (state.grants if state else ())
            if rule in ("", grant.rule) and (not address or grant.lets_in(address))
        )
        if found:
            self._kernel.apply(delete_grants(found))
        return found

    def leave_mark(self, table: Table) -> None:
        """Add and delete *table* in one transaction, for whoever listens; raises KernelError."""
        self._kernel.apply(Transaction((nft.add_table(table), nft.delete_table(table))))

    def teardown(self) -> bool:
        """Remove the table; return False if there was none; raises KernelError."""
        existed = self.read_state() is not None
        if existed:
            self._kernel.apply(delete_table())
        return existed
