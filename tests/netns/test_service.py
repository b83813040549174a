"""What a service manager does with nfpkd: hears from it, and starts its helper."""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfpkd.demo.process import NFPKD, Followed
from support.network import SERVER4, Actions, Network, knock, listen_tcp, outcome, rule, run_options

PORT = 2222


class Manager:
    """The socket that a service manager listens on."""

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self._socket = sock
        self._path = path

    def hear(self) -> dict[str, str]:
        """Wait for the next message that is not about the watchdog, and return it."""
        while (message := self._receive()) == {"WATCHDOG": "1"}:
            pass
        return message

    def hear_watchdog(self) -> None:
        while self._receive() != {"WATCHDOG": "1"}:
            pass

    def was_told_anything(self) -> bool:
        return bool(select.select([self._socket], [], [], 0)[0])

    def _receive(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().split("\n"))

    def command(self, *arguments: str) -> list[str]:
        return ["env", f"NOTIFY_SOCKET={self._path}", "WATCHDOG_USEC=1000000", *NFPKD, "run", *arguments]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(20)
        yield Manager(sock, tmp_path / "notify")


@pytest.mark.guest
def test_a_service_manager_hears_when_it_guards_reloads_and_ends(
    network: Network, actions: Actions, manager: Manager
) -> None:
    file = actions.write("door.json", rule("door", PORT))
    with listen_tcp(network.server, PORT), Followed(network.server, manager.command(*run_options(actions))) as run:
        assert manager.hear() == {"READY": "1", "STATUS": "guarding by 1 rule"}
        # It is so from that moment on.
        assert outcome(network.client, SERVER4, PORT) == "silence"
        manager.hear_watchdog()
        manager.hear_watchdog()
        run.process.send_signal(signal.SIGHUP)
        assert manager.hear().keys() == {"RELOADING", "MONOTONIC_USEC"}
        assert manager.hear() == {"READY": "1", "STATUS": "guarding by 1 rule"}
        file.write_text("[{]")
        assert manager.hear()["RELOADING"] == "1"
        assert manager.hear()["STATUS"] == "the last reload failed; guarding by 1 rule from before"
        assert outcome(network.client, SERVER4, PORT) == "silence"
        run.process.send_signal(signal.SIGTERM)
        assert manager.hear() == {"STOPPING": "1"}
        assert run.wait() == 0


def test_what_cannot_begin_is_never_ready(network: Network, actions: Actions, manager: Manager) -> None:
    actions.write_text("door.json", "[{]")
    with Followed(network.server, manager.command(*run_options(actions))) as run:
        assert run.wait() == 1
    assert not manager.was_told_anything()


def test_a_service_manager_hears_that_the_last_good_rules_are_in_force(
    network: Network, actions: Actions, manager: Manager
) -> None:
    file = actions.write("door.json", rule("door", PORT))
    command = manager.command("--last-good", *run_options(actions))
    with Followed(network.server, command):
        assert manager.hear()["STATUS"] == "guarding by 1 rule"
    assert manager.hear() == {"STOPPING": "1"}
    file.write_text("[{]")
    with Followed(network.server, command):
        wanted = "the rule files are refused; the last good rules are in force: guarding by 1 rule"
        assert manager.hear() == {"READY": "1", "STATUS": wanted}
        actions.write("door.json", rule("door", PORT), rule("more", 3333))
        assert manager.hear()["RELOADING"] == "1"
        assert manager.hear() == {"READY": "1", "STATUS": "guarding by 2 rules"}


@contextlib.contextmanager
def helper_socket(path: Path, rules: Path) -> Iterator[None]:
    """Accept one connection at *path*, and start the helper on it, as nfpkd-triggers.socket does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(1)

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    command = [sys.executable, "-P", "-m", "nfpkd.triggers.helper", str(rules), "loose", "20", "text"]
                    process = subprocess.Popen([*command], stdin=connection.fileno())
                process.wait(30)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(30)


def test_commands_run_by_a_helper_of_the_service_managers(
    network: Network, actions: Actions, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The daemon was never root, and its rules' commands run as another user all the same."""
    path = tmp_path / "socket"
    command = {"ext-command": ["/usr/bin/id", "-un"], "ext-user": "daemon"}
    file = actions.write("door.json", rule("door", PORT, **command))
    os.chown(file, 0, pwd.getpwnam("nobody").pw_gid)
    file.chmod(0o640)
    state = actions.path.with_name("state")
    state.mkdir(mode=0o700)
    os.chown(state, pwd.getpwnam("nobody").pw_uid, -1)
    for folder in actions.path.parents[:3]:
        folder.chmod(0o755)
    options = ["--user", "nobody", "--trigger-socket", str(path)]
    daemon = [*NFPKD, "run", *run_options(actions), *options]
    with helper_socket(path, actions.path), Followed(network.server, daemon) as run:
        run.wait_for("guarding")
        knock(network.client, SERVER4)
        run.wait_for("knock accepted")
        # Measured, it may complain behind that of a directory that is not its own.
        assert any(line.startswith("info: stopped") for line in run.stop())
    assert "command open: exit status 0 rule=door source=192.0.2.2 user=daemon:daemon output=daemon" in (
        capfd.readouterr().err
    )
