"""The host as `nfpkd doctor` finds it.

`gather` asks the host and never raises: what cannot be asked is None.
"""

import contextlib
import ctypes
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nfpkd.errors import KernelError, RulesError
from nfpkd.firewall.firewall import Firewall
from nfpkd.firewall.foreign import (
    HOOKS,
    BaseChain,
    ChainId,
    Ruleset,
    find_references,
)
from nfpkd.firewall.kernel import Kernel, NftablesKernel
from nfpkd.firewall.layout import TABLE
from nfpkd.firewall.nft import Json, Table
from nfpkd.firewall.sessions import list_open_sessions
from nfpkd.firewall.state import State
from nfpkd.privileges import has_net_admin
from nfpkd.rules.loader import Loaded, find_rule_files, load_rules
from nfpkd.rules.model import Service
from nfpkd.verifier.listeners import Listener, find_queue_listeners
from nfpkd.verifier.store import FILE_NAME

_PROC_NET = Path("/proc/thread-self/net")
_PROC_SYS = Path("/proc/sys")


class Clock(NamedTuple):
    """What adjtimex(2) says: what it returns, and its status bits."""

    state: int
    status: int


class Conntrack(NamedTuple):
    """How many connections are known, of how many; a *limit* of 0 is none."""

    known: int
    limit: int


class Inotify(NamedTuple):
    """Limits for this user; *error* is the errno of an attempt to watch something, 0 if that worked."""

    watches: int
    instances: int
    error: int


class Memory(NamedTuple):
    """The state directory, or the nearest directory above it that exists, and the replay memory in it.

    *owner* is of the directory, *file_owner* of the memory, None if there is none yet;
    *is_held* tells whether a process has the memory open as its own, None if that is not known.
    """

    path: Path
    exists: bool
    is_directory: bool
    is_writable: bool
    mode: int
    owner: int
    file_owner: int | None = None
    is_held: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The host as it was found; None stands for what could not be asked.

    *missing* is what nfpkd needs and is not installed; *queues* tells whether the kernel has
    the queue statement, or why it cannot queue at all.  *state* is nfpkd's table; *is_guarding*
    tells whether there is one.  *others* is the rest of the ruleset, *legacy* the tables
    of iptables-legacy.  *comm* names the process that listens on the queue.
    """

    queue: int
    net_admin: bool
    missing: tuple[KernelError, ...]
    queues: bool | KernelError | None
    is_guarding: bool | None
    state: State | None
    others: Ruleset | None
    legacy: tuple[str, ...]
    listeners: dict[int, Listener]
    comm: str
    is_running: bool | None
    clock: Clock | None
    in_container: bool
    conntrack: Conntrack | None
    actions: Path
    rules: Loaded | RulesError
    folders: int
    memory: Memory | None
    inotify: Inotify | None

    def guarded(self) -> frozenset[Service]:
        """What is guarded, or will be when the rules are applied."""
        services: set[Service] = set()
        if self.state is not None:
            services |= self.state.gated.keys() | {place.service for place in self.state.gated_on}
        if isinstance(self.rules, Loaded):
            services.update(service for rule in self.rules.rules for service in rule.services())
        return frozenset(services)

    def used_queue(self) -> int:
        """The queue that the table hands knocks to, or the one that was asked about."""
        return self.queue if self.state is None or self.state.queue is None else self.state.queue


# The checks


def gather(actions: Path, queue: int, state_dir: Path | None) -> Facts:
    """Ask this host, in the network namespace of this thread; *state_dir* is None where nothing is remembered."""
    missing: list[KernelError] = []
    kernel = _open_kernel(missing)
    _try_queue_library(missing)
    may_ask = kernel if has_net_admin() else None
    is_guarding, state = _read_state(may_ask, missing)
    listeners = find_queue_listeners()
    used = queue if state is None or state.queue is None else state.queue
    is_running = _is_running()
    return Facts(
        queue=queue,
        net_admin=has_net_admin(),
        missing=tuple(missing),
        queues=_find_queue_way(may_ask),
        is_guarding=is_guarding,
        state=state,
        others=_read_others(may_ask),
        legacy=_find_legacy_tables(),
        listeners=listeners,
        comm=_read_text(Path(f"/proc/{listeners[used].port_id}/comm")).strip() if used in listeners else "",
        is_running=is_running,
        clock=_read_clock(),
        in_container=_is_container(),
        conntrack=_read_conntrack(),
        actions=actions,
        rules=_load_rules(actions),
        folders=_count_folders(actions),
        memory=None if state_dir is None else _look_at_memory(state_dir),
        inotify=_try_inotify(),
    )


def _open_kernel(missing: list[KernelError]) -> NftablesKernel | None:
    try:
        return NftablesKernel()
    except KernelError as error:
        missing.append(error)
        return None


def _try_queue_library(missing: list[KernelError]) -> None:
    try:
        import nfpkd.verifier.queue  # noqa: F401  (its import is the question)
    except ImportError as error:
        reason = f"Python's NetfilterQueue cannot be loaded ({error})"
        remedy = 'run "pip install NetfilterQueue" (it takes libnetfilter-queue-dev and a compiler)'
        missing.append(KernelError(reason, remedy))


def _find_queue_way(kernel: NftablesKernel | None) -> bool | KernelError | None:
    if kernel is None:
        return None
    try:
        return kernel.has_queue_statement
    except KernelError as error:
        return error


def _read_state(kernel: Kernel | None, missing: list[KernelError]) -> tuple[bool | None, State | None]:
    if kernel is not None:
        try:
            state = Firewall(kernel, list_open_sessions).read_state()
        except KernelError as error:
            missing.append(error)
        else:
            return state is not None, state
    return None, None


def _read_others(kernel: NftablesKernel | None) -> Ruleset | None:
    """Return the base chains of other tables, with all that they lead to."""
    if kernel is None:
        return None
    try:
        listed = [entry["chain"] for entry in kernel.read("chains") if "chain" in entry]
    except KernelError:
        return None
    bases = [base for base in map(_read_base, listed) if base is not None and base.table != TABLE]
    rules: dict[ChainId, list[Json]] = {}
    sets: dict[ChainId, list[Any]] = {}
    waiting = [ChainId(base.table, base.name) for base in bases]
    while waiting:
        place = waiting.pop()
        if place in rules:
            continue
        listed = [entry["rule"] for entry in _list(kernel, "chain", place) if "rule" in entry]
        rules[place] = [rule for rule in listed if _is_rule(rule)]
        found = find_references([rule["expr"] for rule in rules[place]])
        waiting += [ChainId(place.table, name) for name in found.chains]
        for name in found.sets - {known.name for known in sets if known.table == place.table}:
            held = ChainId(place.table, name)
            sets[held] = _list_elements(kernel, held)
            waiting += [ChainId(place.table, chain) for chain in find_references(sets[held]).chains]
    return Ruleset(tuple(sorted(bases, key=lambda base: (base.hook != "prerouting", base.priority))), rules, sets)


def _list(kernel: NftablesKernel, kind: str, place: ChainId) -> list[Json]:
    # Another tool may just have removed it.
    with contextlib.suppress(KernelError):
        return kernel.read(kind, {**place.table._asdict(), "table": place.table.name, "name": place.name})
    return []


def _list_elements(kernel: NftablesKernel, place: ChainId) -> list[Any]:
    for kind in ("set", "map"):
        for entry in _list(kernel, kind, place):
            if kind in entry:
                found = entry[kind].get("elem", [])
                return found if isinstance(found, list) else []
    return []


def _is_rule(listed: Json) -> bool:
    match listed:
        case {"chain": str(), "handle": int(), "expr": list(statements)}:
            return all(isinstance(statement, dict) for statement in statements)
    return False


def _read_base(chain: Json) -> BaseChain | None:
    """Return the base chain that *chain* lists, or None if it is of no concern."""
    match {"policy": "accept", **chain}:
        case {
            "family": str(family),
            "table": str(table),
            "name": str(name),
            "type": "filter",
            "hook": str(hook),
            "prio": int(priority),
            "policy": str(policy),
        } if hook in HOOKS:
            return BaseChain(Table(family, table), name, hook, priority, policy)
    return None


def _find_legacy_tables() -> tuple[str, ...]:
    files = {"iptables": "ip_tables_names", "ip6tables": "ip6_tables_names"}
    return tuple(
        f"{command} {table}" for command, name in files.items() for table in _read_text(_PROC_NET / name).split()
    )


def _is_running() -> bool | None:
    """Tell whether somebody holds the lock of nfpkd.instance, without touching it."""
    text = _read_text(_PROC_NET / "unix")
    # Anybody may give a socket a name with line breaks in it.
    return any(line.split()[-1:] == ["@nfpkd"] for line in text.splitlines()) if text else None


class _Timex(ctypes.Structure):
    """Kernel: struct timex, as far as it matters; what follows is room."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def _read_clock() -> Clock | None:
    timex = _Timex()
    with contextlib.suppress(AttributeError):
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
        return Clock(state, timex.status) if state >= 0 else None
    return None


def _is_container() -> bool:
    marks = ("/run/systemd/container", "/.dockerenv", "/run/.containerenv")
    return any(Path(mark).exists() for mark in marks) or "container=" in _read_text(Path("/proc/1/environ"))


def _read_conntrack() -> Conntrack | None:
    folder = _PROC_SYS / "net/netfilter"
    count, limit = (_read_number(folder / f"nf_conntrack_{name}") for name in ("count", "max"))
    return None if count is None else Conntrack(count, limit or 0)


def _load_rules(actions: Path) -> Loaded | RulesError:
    try:
        return load_rules(actions)
    except RulesError as error:
        return error


def _count_folders(actions: Path) -> int:
    folders: list[Path] = []
    find_rule_files(actions, [], strict_modes=False, folders=folders)
    return len(folders)


def _look_at_memory(state_dir: Path) -> Memory:
    path = state_dir.absolute()
    info = _stat(path)
    while info is None and path != path.parent:
        path = path.parent
        info = _stat(path)
    database = _stat(state_dir / FILE_NAME)
    return Memory(
        path=path,
        exists=path == state_dir.absolute(),
        is_directory=info is not None and stat.S_ISDIR(info.st_mode),
        is_writable=os.access(path, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids),
        mode=0 if info is None else info.st_mode,
        owner=-1 if info is None else info.st_uid,
        file_owner=None if database is None else database.st_uid,
        is_held=None if database is None else _is_locked(database.st_ino),
    )


def _is_locked(inode: int) -> bool | None:
    """Look in /proc/locks, which shows those of processes that are seen from here."""
    try:
        text = Path("/proc/locks").read_text()
    except OSError:
        return None
    # Like "1: POSIX  ADVISORY  WRITE 4711 fe:00:1234 0 EOF".
    return any(word.endswith(f":{inode}") and word.count(":") == 2 for word in text.split())


def _try_inotify() -> Inotify | None:
    folder = _PROC_SYS / "fs/inotify"
    watches, instances = (_read_number(folder / f"max_user_{name}") for name in ("watches", "instances"))
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    if descriptor < 0:
        error = ctypes.get_errno()
    else:
        # Kernel: IN_DELETE_SELF
        added = libc.inotify_add_watch(descriptor, b"/", 0x400)
        error = ctypes.get_errno() if added < 0 else 0
        os.close(descriptor)
    if watches is None and not error:
        return None
    return Inotify(-1 if watches is None else watches, -1 if instances is None else instances, error)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _read_number(path: Path) -> int | None:
    text = _read_text(path).strip()
    return int(text) if text.isdecimal() else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
