"""A key from a file, a descriptor or a command, and what is said when there is none."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfpkd.errors import KnockError
from nfpkd.knock.keys import read_key_descriptor, read_key_file, run_key_command

SECRET = "0x5b1ecafe"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            # The test closed it.
            continue


def key_file(tmp_path: Path, data: bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "server.knock"
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("data", "key"),
    [
        (b"secret words", "secret words"),
        (b"secret words\nand a comment\n", "secret words"),
        (b"secret words \r\n", "secret words "),
        ("\ufeffschlüssel\n".encode(), "schlüssel"),
        (b"", ""),
        (b"\n", ""),
    ],
)
def test_the_first_line_of_a_file_is_the_key(tmp_path: Path, data: bytes, key: str) -> None:
    assert read_key_file(key_file(tmp_path, data)) == key


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_file_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, SECRET.encode(), mode)
    with pytest.raises(KnockError, match=f'run "chmod 600 {path}"') as caught:
        read_key_file(path)
    assert SECRET not in str(caught.value)


def test_a_fifo_is_as_good_as_a_file(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o644)
    writer = threading.Thread(target=lambda: fifo.write_text("secret words\n"))
    writer.start()
    assert read_key_file(fifo) == "secret words"
    writer.join()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(KnockError) as caught:
        read_key_file(tmp_path / "none")
    assert str(caught.value) == f"{tmp_path}/none: no such file or directory"
    with pytest.raises(KnockError, match="is a directory"):
        read_key_file(tmp_path)
    with pytest.raises(KnockError, match=r"server\.knock: cannot be read as text"):
        read_key_file(key_file(tmp_path, b"\xff\xfe" + SECRET.encode()))


def test_a_descriptor_gives_its_next_line_and_keeps_the_rest(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"secret words\nfor somebody else")
    assert read_key_descriptor(reading) == "secret words"
    assert os.read(reading, 100) == b"for somebody else"


def test_a_descriptor_that_ends_has_no_key(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.close(writing)
    assert read_key_descriptor(reading) == ""


def test_a_line_without_end_is_not_read_to_its_end() -> None:
    with Path("/dev/zero").open("rb", buffering=0) as endless:
        assert len(read_key_descriptor(endless.fileno())) == 4096


def test_a_descriptor_that_is_not_open_is_named(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    with pytest.raises(KnockError) as caught:
        read_key_descriptor(pipe[0])
    assert str(caught.value) == f"descriptor {pipe[0]}: bad file descriptor"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_first_line_that_a_command_prints_is_the_key() -> None:
    assert run_key_command(python(r"print('secret words\nand more')")) == "secret words"


def test_a_command_is_run_without_a_shell_and_without_input() -> None:
    assert run_key_command(["echo", "$HOME", ";", "true"]) == "$HOME ; true"
    assert run_key_command(python("import sys; print(len(sys.stdin.read()))")) == "0"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            python("import sys; sys.exit('warning: x\\n\\nthe keyring is locked\\n')"),
            "exit code 1: the keyring is locked",
        ),
        (python(f"print('{SECRET}'); raise SystemExit(3)"), "ended with exit code 3"),
        (python("import os; os.kill(os.getpid(), 9)"), "was killed by a signal"),
        (["no-such-command-anywhere", SECRET], "no-such-command-anywhere: no such file or directory"),
        (["a\0b"], "cannot be run"),
        (python(f"import os; os.write(1, b'\\xff{SECRET}')"), "cannot be read as text"),
    ],
)
def test_a_command_that_fails_says_why(command: list[str], said: str) -> None:
    with pytest.raises(KnockError) as caught:
        run_key_command(command)
    message = str(caught.value)
    assert command[0] in message
    assert message.endswith(said)
    assert SECRET not in message
