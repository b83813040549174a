"""Who else changes nfpkd's table, from the kernel's own notifications.

nf_tables tells a multicast group of every transaction: a message for each
object that it adds or deletes, then one that ends it and says who made it.
Elements that run out, or that packets add and delete, are told to nobody.

Message formats: linux/netfilter/nfnetlink.h and nf_tables.h, nf_tables_gen_notify()
in net/netfilter/nf_tables_api.c.  Numbers are in network byte order, but for
the headers'.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from nfpkd.errors import KernelError, NetlinkError
from nfpkd.firewall.netlink import (
    NETLINK_NETFILTER,
    NFGENMSG,
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_INET,
    iterate_attributes,
    iterate_messages,
    text_of,
)
from nfpkd.firewall.nft import Table

_NUMBER = struct.Struct(">I")

_NFNLGRP_NFTABLES = 7

_NFT_MSG_NEWGEN = 15
# Type of message: what nft would call it, and the attribute with the object's name.
_VERBS = {
    0: ("add table", 1),
    2: ("delete table", 1),
    3: ("add chain", 3),
    5: ("delete chain", 3),
    6: ("add rule", 2),
    8: ("delete rule", 2),
    9: ("add set", 2),
    11: ("delete set", 2),
    12: ("add element", 2),
    14: ("delete element", 2),
    18: ("add object", 2),
    20: ("delete object", 2),
    22: ("add flowtable", 2),
    24: ("delete flowtable", 2),
}
# In every message about an object.
_NFTA_TABLE = 1
_NFTA_GEN_PROC_PID = 2
_NFTA_GEN_PROC_NAME = 3

# One message is at most a rule; the kernel packs many into a page.
_BUFFER = 1 << 16
# Room for the notifications of a large reload; beyond it the kernel says that some were lost.
_RECEIVE_BUFFER = 1 << 20
# So that a storm of changes elsewhere does not keep knocks waiting.
_READS_AT_ONCE = 64
# What is remembered of one transaction: enough to say what it was.
_MAX_SEEN = 256
_MAX_TOLD = 5


class Touch(NamedTuple):
    """One object was added or deleted: *verb* in nft's words, *name* its own or that of the chain or set it is in."""

    table: Table
    verb: str
    name: str
    sender: int

    @property
    def is_weighty(self) -> bool:
        """Whether it takes grants along."""
        return self.verb in ("delete table", "delete set")


class End(NamedTuple):
    """A transaction is complete; *pid*, as the initial namespace counts threads, and *process* are who made it."""

    pid: int
    process: str


class Change(NamedTuple):
    """A transaction that touched the table.

    *seen* is what it did, as verb and name; empty stands for unknown, for notifications were lost.
    """

    pid: int
    process: str
    seen: frozenset[tuple[str, str]]

    def did(self, verb: str) -> frozenset[str]:
        """Return the names of what *verb* was done to."""
        return frozenset(name for done, name in self.seen if done == verb)

    def describe(self) -> str:
        """Return in nft's words what was done, the gravest thing alone where it says all."""
        if not self.seen:
            return "unknown: notifications were lost"
        if self.did("delete table"):
            return "delete table"
        words = sorted(f"{verb} {name}" for verb, name in self.seen if not name.startswith("__"))
        return ", ".join((*words[:_MAX_TOLD], "...") if len(words) > _MAX_TOLD else words)


UNKNOWN = Change(0, "", frozenset())


class Collector:
    """Puts notifications together to the transactions that touched *table*."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._seen: set[tuple[str, str]] = set()

    def add(self, notifications: Iterable[Touch | End]) -> Iterator[Change]:
        """Yield the changes that *notifications*, which go on from the last ones, complete."""
        for found in notifications:
            if isinstance(found, End):
                if self._seen:
                    yield Change(found.pid, found.process, frozenset(self._seen))
                self._seen.clear()
            elif found.table == self._table and found.sender and (len(self._seen) < _MAX_SEEN or found.is_weighty):
                # What nobody sent, the kernel did by itself, in no transaction.
                self._seen.add((found.verb, found.name))

    def reset(self) -> None:
        """Forget what is incomplete: the rest of it was lost."""
        self._seen.clear()


class TableMonitor:
    """Hears of changes of *table* in the network namespace of whoever makes it, other than its own process's."""

    def __init__(self, table: Table) -> None:
        """Begin to listen; raises KernelError without CAP_NET_ADMIN."""
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._collector = Collector(table)
        self._own_pid = os.getpid()
        self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            # Without an address of its own the socket would pass for the kernel, and hear nothing.
            self._socket.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))
        except OSError as error:
            self._socket.close()
            raise KernelError(f"cannot listen for changes of the firewall: {error.strerror}") from None

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def learn_own_pid(self, leave_mark: Callable[[Table], None]) -> None:
        """Learn what the kernel takes this process for, which in a container is not what it is called there.

        *leave_mark* adds and deletes the table that it is given, in one transaction.
        """
        mark = Table("inet", f"nfpkd-mark-{secrets.token_hex(4)}")
        collector = Collector(mark)
        leave_mark(mark)
        # The kernel has told of it by now.  What else it tells is from before anything was in force.
        with contextlib.suppress(BlockingIOError, NetlinkError):
            while True:
                for change in collector.add(self._receive()):
                    self._own_pid = change.pid
                    return

    def read(self) -> list[Change]:
        """Return the changes by others that are heard of by now, or the first of very many."""
        changes: list[Change] = []
        for _ in range(_READS_AT_ONCE):
            try:
                changes += self._collector.add(self._receive())
            except BlockingIOError:
                break
            except NetlinkError:
                self._collector.reset()
                changes.append(UNKNOWN)
        return [change for change in changes if change.pid != self._own_pid]

    def _receive(self) -> list[Touch | End]:
        """Return what one datagram tells; raises BlockingIOError if there is none and NetlinkError if some was lost."""
        try:
            data, _, flags, sender = self._socket.recvmsg(_BUFFER)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            raise NetlinkError("notifications were lost") from None
        if sender[0] != 0:
            # Not from the kernel.
            return []
        if flags & socket.MSG_TRUNC:
            raise NetlinkError("a notification was too long")
        return list(parse_notifications_untrusted(data))


def parse_notifications_untrusted(data: bytes) -> Iterator[Touch | End]:
    """Yield what the messages in *data* tell of nf_tables; raises NetlinkError if they are not what they should be."""
    for message in iterate_messages(data):
        if message.kind >> 8 == NFNL_SUBSYS_NFTABLES:
            yield from _parse_message(message.kind & 0xFF, message.sender, message.body)


def _parse_message(kind: int, sender: int, body: bytes) -> Iterator[Touch | End]:
    if len(body) < NFGENMSG.size:
        raise NetlinkError("a message is cut off")
    family, _, _ = NFGENMSG.unpack_from(body)
    if kind == _NFT_MSG_NEWGEN:
        attributes = dict(iterate_attributes(body, NFGENMSG.size))
        pid = attributes.get(_NFTA_GEN_PROC_PID, b"")
        if len(pid) != _NUMBER.size:
            raise NetlinkError("a transaction has no maker")
        yield End(_NUMBER.unpack(pid)[0], text_of(attributes.get(_NFTA_GEN_PROC_NAME, b"")))
    elif kind in _VERBS and family == NFPROTO_INET:
        verb, name = _VERBS[kind]
        attributes = dict(iterate_attributes(body, NFGENMSG.size))
        if _NFTA_TABLE not in attributes:
            raise NetlinkError("a message names no table")
        table = Table("inet", text_of(attributes[_NFTA_TABLE]))
        yield Touch(table, verb, text_of(attributes.get(name, b"")), sender)
