"""Small networks on one machine: namespaces joined by virtual cables, gone when their owner is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from nfpkd.errors import KernelError

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace of its own, with nothing in it but a loopback interface that is up."""

    def __init__(self, label: str) -> None:
        """Make the namespace; raises KernelError if it cannot be made."""
        self.name = f"nfpkd-{label}-{secrets.token_hex(3)}"
        _ip("netns", "add", self.name)
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *command: str) -> str:
        """Run *command* inside and return what it prints; raises KernelError if it fails."""
        return _run(["ip", "netns", "exec", self.name, *command])

    def start(self, command: Sequence[str], **options: object) -> subprocess.Popen[str]:
        """Start *command* inside; *options* are those of subprocess.Popen."""
        full = ["ip", "netns", "exec", self.name, *command]
        return subprocess.Popen(full, text=True, **options)  # type: ignore[call-overload,no-any-return]  # noqa: S603

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread inside: what it opens meanwhile (sockets, netlink) stays there."""
        with Path("/proc/thread-self/ns/net").open() as home, Path(f"/run/netns/{self.name}").open() as inside:
            _set_namespace(inside.fileno())
            try:
                yield
            finally:
                _set_namespace(home.fileno())

    def remove(self) -> None:
        """Remove the namespace, and with it its interfaces and its firewall."""
        with contextlib.suppress(KernelError):
            _ip("netns", "del", self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


def connect(
    first: Namespace, first_addresses: Sequence[str], second: Namespace, second_addresses: Sequence[str]
) -> None:
    """Join two namespaces by a cable; addresses are like ``192.0.2.1/24`` and ``2001:db8::1/64``."""
    ends = [f"veth{secrets.token_hex(4)}" for _ in range(2)]
    _ip("link", "add", ends[0], "netns", first.name, "type", "veth", "peer", "name", ends[1], "netns", second.name)
    # An IPv6 address that was added to a link still down may not answer for its first second.
    for namespace, device in ((first, ends[0]), (second, ends[1])):
        namespace.run("ip", "link", "set", device, "up")
    for namespace, device, addresses in ((first, ends[0], first_addresses), (second, ends[1], second_addresses)):
        for address in addresses:
            # Without nodad a new IPv6 address would be unusable for its first second.
            quick = ["nodad"] if ":" in address else []
            namespace.run("ip", "address", "add", address, "dev", device, *quick)


def _ip(*arguments: str) -> None:
    _run(["ip", *arguments])


def _run(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        raise KernelError(f"the command {command[0]} is missing", "install iproute2")
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        shown = " ".join(command[:4])
        reason = done.stderr.strip() or f"exit status {done.returncode}"
        remedy = "" if os.geteuid() == 0 else "network namespaces need root: run it with sudo"
        raise KernelError(f"{shown} failed: {reason}", remedy)
    return done.stdout


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
