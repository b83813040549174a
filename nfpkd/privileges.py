"""Giving up what the daemon does not need: it reads packets from anybody.

It keeps CAP_NET_ADMIN, which nftables and the packet queue take, and nothing
else; it can gain nothing new, and leaves no core with keys in it.

Sources: capabilities(7), prctl(2), linux/capability.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import re
import resource
import struct
from pathlib import Path

from nfpkd.errors import KernelError

CAP_NET_ADMIN = 12

_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4

# _LINUX_CAPABILITY_VERSION_3: two sets of 32 bits for each of effective, permitted, inheritable.
_VERSION_3 = 0x20080522
_HEADER = struct.Struct("=Ii")
_SETS = struct.Struct("=6I")

_libc = ctypes.CDLL(None, use_errno=True)


def has_net_admin(process: int | None = None) -> bool:
    """Whether *process*, or this one, may change the firewall of its network namespace; False for one that is gone.

    What somebody else may do counts only if it is so on this host, and not in a user namespace of theirs.
    """
    own = Path("/proc/self")
    theirs = own if process is None else Path(f"/proc/{process}")
    try:
        found = re.search(r"^CapEff:\s*([0-9a-f]+)", (theirs / "status").read_text(), re.MULTILINE)
        if process is not None and (theirs / "uid_map").read_text() != (own / "uid_map").read_text():
            return False
    except OSError:
        return False
    return found is not None and bool(int(found[1], 16) >> CAP_NET_ADMIN & 1)


def give_up_privileges(user: str = "") -> None:
    """Keep CAP_NET_ADMIN alone; become *user*, with that user's groups, if one is named.

    Raises KernelError if it cannot be done.  What threads there are already keep what they have,
    so call this before any are made.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _drop_bounding_set()
        if user:
            _become(user)
        only = 1 << CAP_NET_ADMIN
        _set_capabilities(_held() & only)
        forbid_new_privileges()
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        _prctl(_PR_SET_DUMPABLE, 0)
    except OSError as error:
        raise KernelError(f"privileges cannot be given up: {error.strerror}") from None


def forbid_new_privileges() -> None:
    """Nothing started from here can gain privileges, by a set-user-id bit or otherwise; raises OSError."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def find_group(user: str) -> int | None:
    """Return the group of *user*, None for no user; raises KernelError if there is no such user."""
    return _find_user(user).pw_gid if user else None


def _find_user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise KernelError(f"there is no user {name!r}", 'name one that exists with "--user"') from None


def _become(name: str) -> None:
    entry = _find_user(name)
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups(os.getgrouplist(name, entry.pw_gid))
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)


def _drop_bounding_set() -> None:
    """What is not in the bounding set cannot come back by running a program; dropping takes CAP_SETPCAP."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in set(range(last + 1)) - {CAP_NET_ADMIN}:
        # Without CAP_SETPCAP there is nothing to lose but what is in the set: no program run later
        # gains by it, because of no_new_privs.
        with contextlib.suppress(PermissionError):
            _prctl(_PR_CAPBSET_DROP, capability)


def _held() -> int:
    header = ctypes.create_string_buffer(_HEADER.pack(_VERSION_3, 0))
    sets = ctypes.create_string_buffer(_SETS.size)
    if _libc.capget(header, sets):
        raise _last_error()
    _, permitted_low, _, _, permitted_high, _ = _SETS.unpack(sets.raw[: _SETS.size])
    return int(permitted_low | permitted_high << 32)


def _set_capabilities(capabilities: int) -> None:
    low, high = capabilities & 0xFFFFFFFF, capabilities >> 32
    header = ctypes.create_string_buffer(_HEADER.pack(_VERSION_3, 0))
    if _libc.capset(header, ctypes.create_string_buffer(_SETS.pack(low, low, 0, high, high, 0))):
        raise _last_error()


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        raise _last_error()


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
