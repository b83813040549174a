"""Readers of what nfpkd itself wrote down, and of what the kernel and other processes say.

Each takes the bytes of a file, an answer or a message, which may be anything.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import cast
from zlib import crc32

from lab.fuzz import texts
from lab.fuzz.known import OPTIONS, RULES, RULESET
from lab.fuzz.promise import promise
from nfpkd.confirmation import parse_pending
from nfpkd.doctor.checks import check_others
from nfpkd.doctor.facts import _read_others
from nfpkd.errors import KernelError, NetlinkError, StateError, TriggerError
from nfpkd.firewall.channel import Channel, read_errors
from nfpkd.firewall.elements import pack_grants
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.kernel import Listing, NftablesKernel
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.monitor import Collector, parse_notifications_untrusted
from nfpkd.firewall.netlink import iterate_messages
from nfpkd.firewall.nft import Json, Table, Transaction
from nfpkd.firewall.outline import read_outline
from nfpkd.firewall.rollback import restore_table
from nfpkd.firewall.sessions import parse_listening, parse_sessions
from nfpkd.firewall.state import parse_state
from nfpkd.instance import parse_report_untrusted
from nfpkd.metrics import render_prometheus
from nfpkd.rules.model import Protocol, Service
from nfpkd.status import render_changes, render_json, render_text
from nfpkd.triggers.message import decode_message_untrusted, encode_message
from nfpkd.verifier.ledger import GrantLedger
from nfpkd.verifier.listeners import parse_listeners
from nfpkd.verifier.replay import Freshness, ReplayBook
from nfpkd.verifier.store import FILE_NAME, ReplayStore

Reader = Callable[[bytes], None]


def make_readers(scratch: Path, *, thorough: bool) -> dict[str, Reader]:
    """Return the readers by name; those that read files have them below *scratch*.

    If not *thorough*, one of the things that are done with listings is done with each.
    """
    return {
        "memory": _MemoryReader(scratch / "memory"),
        "report": read_report,
        "pending": read_pending,
        "listing": lambda body: read_listing(body, thorough=thorough),
        "others": read_others,
        "notifications": read_notifications,
        "answer": read_answer,
        "dumps": read_dumps,
        "message": read_message,
        "queues": read_queues,
        "sockets": read_sockets,
        "profiles": texts.read_profiles,
        "ini": texts.read_ini,
        **texts.IMPORTERS,
    }


class _MemoryReader:
    """The file of the replay memory, as a disk gave it back."""

    _KEY, _DIGEST, _TIME = b"k" * 16, b"d" * 32, 1_800_000_000

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._directory.mkdir(mode=0o700)

    def __call__(self, body: bytes) -> None:
        for file in self._directory.iterdir():
            file.unlink()
        (self._directory / FILE_NAME).write_bytes(body)
        # A memory may be unusable.  It may not begin with nothing as if there never was anything, nor
        # forget what it said that it keeps.
        if self._admit() is Freshness.FRESH:
            promise(self._admit() is not Freshness.FRESH, "what was kept is known after a restart")

    def _admit(self) -> Freshness | None:
        """Begin with what is kept and keep one more knock; None if the memory cannot be used, or was lost."""
        try:
            store = ReplayStore(self._directory)
        except StateError:
            return None
        try:
            book = ReplayBook(store.load())
            freshness = book.admit(self._KEY, self._DIGEST, self._TIME, self._TIME - 10)
            store.save(book.changes())
        except StateError:
            return None
        finally:
            store.close()
        return None if store.was_lost else freshness


def read_report(body: bytes) -> None:
    """What is said by whoever holds the lock of `nfpkd run`."""
    report = parse_report_untrusted(body)
    promise(report is None or report.status.isprintable(), "what is shown does not move cursors")


def read_pending(body: bytes) -> None:
    """The file of a change that waits to be confirmed."""
    try:
        pending = parse_pending(body)
    except StateError as error:
        promise(bool(error.remedy), "there is something to do about it")
        return
    _check_transaction(restore_table(pending.listing))


def read_listing(body: bytes, *, thorough: bool) -> None:
    """nft's listing of our table, which other tools may have changed."""
    listing = _listing(body)
    state = parse_state(listing)

    def show() -> None:
        render_text(state, {})
        render_prometheus(state, {})
        json.loads(render_json(state, {}))
        render_changes(state, RULESET)

    def restore() -> None:
        _check_transaction(restore_table(listing))

    def enforce() -> None:
        ledger = GrantLedger()
        ledger.adopt(state.grants, 0.0)
        Firewall(_Listed(listing), list).apply(RULES, OPTIONS, ledger.live(1.0), lost=True)

    def revoke() -> None:
        Firewall(_Listed(listing), list).revoke(address="192.0.2.1")

    uses = (show, restore, enforce, revoke)
    for use in uses if thorough else (uses[crc32(body) % len(uses)],):
        use()


def read_others(body: bytes) -> None:
    """nft's listing of the tables of other programs."""
    ruleset = _read_others(cast(NftablesKernel, _Listed(_listing(body))))
    promise(ruleset is not None, "what is listed can be looked at")
    if ruleset is not None:
        for finding in check_others(ruleset, [Service(Protocol.TCP, 22), Service(Protocol.UDP, 53)]):
            promise(bool(finding.what and finding.remedy), "a finding says what, and what to do")


def read_notifications(body: bytes) -> None:
    """What the kernel tells of transactions."""
    with contextlib.suppress(NetlinkError):
        for change in Collector(TABLE).add(parse_notifications_untrusted(body)):
            promise(bool(change.describe()), "a change can be described")


def read_answer(body: bytes) -> None:
    """What the kernel answers to a batch."""
    for error in read_errors(body, range(1 << 32)):
        os.strerror(error)


def read_dumps(body: bytes) -> None:
    """What the kernel tells of a table when it is asked what it is made of."""
    with contextlib.suppress(NetlinkError):
        outline = read_outline(cast(Channel, _Told(body)), TABLE)
        promise(outline is not None and all(map(_is_entry, outline)), "what is dumped is listed as nft lists it")
        parse_state(outline or [])


def read_message(body: bytes) -> None:
    """What the helper for commands is sent."""
    with contextlib.suppress(TriggerError):
        promise(encode_message(decode_message_untrusted(body)) == body, "only what can be encoded is decoded")


def read_queues(body: bytes) -> None:
    """The text of /proc/net/netfilter/nfnetlink_queue."""
    parse_listeners(body.decode(errors="replace"))


def read_sockets(body: bytes) -> None:
    """The text of /proc/net/tcp and its like."""
    text = body.decode(errors="replace")
    for session in parse_sessions(text):
        promise(0 <= session.source_port <= 65535, "a port is a port")
    list(parse_listening(text, Protocol.TCP))
    list(parse_listening(text, Protocol.UDP))


def _listing(body: bytes) -> Listing:
    """Return *body* as libnftables' answer; what cannot be in one is left out."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(body)
        if isinstance(found, list):
            return [entry for entry in found if _is_entry(entry)]
    return []


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and all(isinstance(described, dict) for described in entry.values())


def _check_transaction(transaction: Transaction) -> None:
    """Do with *transaction* what `NftablesKernel` does before it sends it."""
    if pack_grants(transaction.commands) is None:
        json.dumps(transaction.commands)


class _Told:
    """A channel on which these messages are told, to each question those of the kind that it asks for."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def dump(self, kind: int, _attributes: bytes) -> Iterator[bytes]:
        # An NFT_MSG_NEW... stands right in front of its NFT_MSG_GET...
        return (message.body for message in iterate_messages(self._body) if message.kind & 0xFF == kind - 1)


class _Listed:
    """A kernel that holds what a listing says, and takes whatever it is sent."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing

    def check(self, transaction: Transaction) -> None:
        _check_transaction(transaction)

    def apply(self, transaction: Transaction) -> None:
        _check_transaction(transaction)

    def list(self, _: Table) -> Listing:
        return self._listing

    def survey(self, _: Table, _passed_over: Collection[str]) -> Listing:
        return self._listing

    def read(self, kind: str, described: Json | None = None) -> Listing:
        if described is None:
            return [entry for entry in self._listing if "chain" in entry]
        listed, name = ("rule", "chain") if kind == "chain" else (kind, "name")
        found = [entry for entry in self._listing if isinstance(entry.get(listed), dict)]
        found = [entry for entry in found if entry[listed].get(name) == described["name"]]
        if not found:
            raise KernelError("no such thing")
        return found
