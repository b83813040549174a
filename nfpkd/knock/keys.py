"""Where a client's key comes from, so that it need not be in the process list: a file, a descriptor, a command."""

from __future__ import annotations

import os
import stat
from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path

from nfpkd.errors import KnockError, reason_of

# A key is at most 82 characters long; a file without line ends is no key file.
_MAX_LINE = 4096


def read_key_file(path: Path) -> str:
    """Return the first line of *path*.

    A file that others can read is refused, as ssh refuses such keys; a FIFO
    is as safe as whoever writes to it.

    Raises KnockError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            info = os.fstat(descriptor)
            if stat.S_ISREG(info.st_mode) and (fault := find_exposure(path, info, holds_keys=True)):
                raise KnockError(f"{path}: {fault}")
            return _read_line(descriptor, str(path))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KnockError(f"{path}: {reason_of(error)}") from None


def read_key_descriptor(descriptor: int) -> str:
    """Return the next line of *descriptor*, and not a byte more: the rest may be for somebody else.

    Raises KnockError.
    """
    try:
        return _read_line(descriptor, f"descriptor {descriptor}")
    except OSError as error:
        raise KnockError(f"descriptor {descriptor}: {reason_of(error)}") from None


def run_key_command(command: Sequence[str]) -> str:
    """Run *command*, without a shell, and return the first line that it prints; raises KnockError if it fails.

    It gets no standard input, because that may be what is to be sent to the
    server; whatever asks for a passphrase asks the terminal or the desktop.
    """
    # Most knocks need none of it, and it is a tenth of their time.
    import subprocess

    name = command[0]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603
    except (OSError, ValueError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "cannot be run"
        raise KnockError(f"the key command {name}: {reason}") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        ended = f"ended with exit code {done.returncode}" if done.returncode > 0 else "was killed by a signal"
        raise KnockError(f"the key command {name} {ended}" + (f": {last}" if last else ""))
    return _decode(done.stdout.partition(b"\n")[0], f"what the key command {name} prints")


def find_exposure(path: Path, info: os.stat_result, *, holds_keys: bool) -> str:
    """Return what would let others read *path* with its keys, or change it, and what to do; empty if nothing would."""
    if info.st_uid not in (0, os.geteuid()):
        return f"belongs to user {info.st_uid}, who could change it: make a copy of your own"
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f'others can change this file: run "chmod {"600" if holds_keys else "go-w"} {path}"'
    if holds_keys and info.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return f'others can read the key in this file: run "chmod 600 {path}"'
    return ""


def _read_line(descriptor: int, where: str) -> str:
    line = bytearray()
    while len(line) < _MAX_LINE and (byte := os.read(descriptor, 1)) and byte != b"\n":
        line += byte
    return _decode(bytes(line), where)


def _decode(line: bytes, where: str) -> str:
    try:
        return line.removeprefix(BOM_UTF8).decode().rstrip("\r")
    except UnicodeDecodeError:
        raise KnockError(f"{where}: cannot be read as text") from None
