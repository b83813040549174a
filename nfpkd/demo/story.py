"""`nfpkd demo`: a port closes, a knock opens it, an edit reloads it, an exit removes it.

Every line is what was observed; a step that is not as it should be says so
and fails the demo.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nfpkd.demo.namespaces import Namespace, connect
from nfpkd.demo.process import NFPKD, PATIENCE_SECONDS, Followed
from nfpkd.knock.client import make_knock
from nfpkd.rules.model import parse_key, parse_tag
from nfpkd.text import Paint, Role, plain

SERVER = "192.0.2.1"
PORT = 2222
OTHER_PORT = 8080
KNOCK_PORT = 4711
WINDOW = 3
TAG = "DEMO"
# How long a refused connection is waited for.
SILENCE_SECONDS = 0.4

Say = Callable[[str], object]


class _StoryError(Exception):
    """A step was not as it should be."""


def tell(say: Say, paint: Paint = plain) -> bool:
    """Tell the story through *say*, line by line; return whether every step was as it should be.

    Raises KernelError if the namespaces cannot be made.
    """
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Namespace("server"))
        client = stack.enter_context(Namespace("client"))
        connect(server, [f"{SERVER}/24"], client, ["192.0.2.2/24"])
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nfpkd-demo-"))
        story = _Story(say, paint, server, client, Path(folder))
        try:
            story.tell()
        except (_StoryError, TimeoutError) as error:
            say(paint(Role.ERROR, f"   NOT AS IT SHOULD BE: {error}"))
            return False
    return True


class _Story:
    def __init__(self, say: Say, paint: Paint, server: Namespace, client: Namespace, folder: Path) -> None:
        self._say = say
        self._paint = paint
        self._folder = folder
        self._server = server
        self._client = client
        self._rule_file = folder / "actions.d" / "demo.json"
        self._key = secrets.token_hex(16)
        self._step = 0

    def tell(self) -> None:
        before = self._server.run("nft", "list", "ruleset")
        with self._serving(PORT), self._serving(OTHER_PORT):
            self._headline(f"A server listens on port {PORT}; nothing guards it")
            self._expect(PORT, opens=True)
            with self._running() as run:
                self._tell_of_knocks(run)
                self._tell_of_reload(run)
                self._headline("nfpkd is asked to stop (SIGTERM)")
                run.stop()
            after = self._server.run("nft", "list", "ruleset")
            self._observe("the firewall is what it was before, byte for byte", after == before)
            self._expect(PORT, opens=True)

    def _tell_of_knocks(self, run: _Run) -> None:
        self._headline(f"nfpkd runs with one rule: {self._write_rule(PORT)}")
        run.start()
        self._expect(PORT, opens=False)
        self._headline(f"The client knocks, and connects with the very next packet (window: {WINDOW} s)")
        knock = make_knock(parse_key(self._key), parse_tag(TAG), KNOCK_PORT)
        self._send(knock)
        opened = time.monotonic()
        connection = self._connect(PORT)
        took = (time.monotonic() - opened) * 1000
        if connection is None:
            raise _StoryError(f"port {PORT}: no answer for {took:.0f} ms")
        with connection:
            self._observe(f"port {PORT}: connected {took:.1f} ms after the knock", as_it_should_be=True)
            run.wait_for("knock accepted")
            self._headline("An eavesdropper sends the same knock again")
            self._send(knock)
            run.wait_for("knock refused")
            self._headline("The window ends")
            closed = self._wait_until_closed(PORT, opened + WINDOW + 2) - opened
            self._observe(f"a new connection got no answer {closed:.1f} s after the knock", closed > WINDOW - 1)
            connection.sendall(b"still there?")
            self._observe("the connection from before still answers", connection.recv(64) == b"still there?")

    def _tell_of_reload(self, run: _Run) -> None:
        self._headline(f"The rule file is edited: {self._write_rule(OTHER_PORT)}")
        run.wait_for("rules reloaded")
        self._expect(PORT, opens=True)
        self._expect(OTHER_PORT, opens=False)

    def _headline(self, text: str) -> None:
        self._step += 1
        self._say(self._paint(Role.HEADING, f"{self._step}. {text}"))

    def _observe(self, text: str, as_it_should_be: bool) -> None:
        mark = self._paint(Role.GOOD, "ok:") if as_it_should_be else self._paint(Role.ERROR, "no:")
        self._say(f"   {mark} {text}")
        if not as_it_should_be:
            raise _StoryError(text)

    def _expect(self, port: int, *, opens: bool) -> None:
        """Try to connect to *port* and say what happened."""
        started = time.monotonic()
        connection = self._connect(port)
        took = (time.monotonic() - started) * 1000
        if connection is None:
            self._observe(f"port {port}: no answer for {took:.0f} ms", not opens)
        else:
            connection.close()
            self._observe(f"port {port}: connected in {took:.1f} ms", opens)

    def _connect(self, port: int) -> socket.socket | None:
        with self._client.entered():
            connection = socket.socket()
        connection.settimeout(SILENCE_SECONDS)
        try:
            connection.connect((SERVER, port))
        except OSError:
            connection.close()
            return None
        connection.settimeout(PATIENCE_SECONDS)
        return connection

    def _wait_until_closed(self, port: int, deadline: float) -> float:
        """Connect over and over, and return when the first attempt without an answer began."""
        while True:
            began = time.monotonic()
            connection = self._connect(port)
            if connection is None:
                return began
            connection.close()
            if began > deadline:
                raise _StoryError(f"port {port} is still open")
            time.sleep(0.1)

    def _send(self, knock: bytes) -> None:
        with self._client.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(knock, (SERVER, KNOCK_PORT))

    def _write_rule(self, port: int) -> str:
        """Write the rule file and return it as it may be shown: without its key."""
        rule = {"name": "demo", "tag": TAG, "key": self._key, "port": port, "protocol": "tcp", "window": WINDOW}
        self._rule_file.parent.mkdir(exist_ok=True)
        self._rule_file.touch(mode=0o600)
        self._rule_file.write_text(json.dumps([rule]))
        return json.dumps(rule | {"key": "..."})

    @contextlib.contextmanager
    def _serving(self, port: int) -> Iterator[None]:
        """Answer connections to *port* with what they say."""
        echo = [sys.executable, "-c", _ECHO_SERVER, SERVER, str(port)]
        with Followed(self._server, echo) as process:
            process.wait_for("listening")
            yield

    @contextlib.contextmanager
    def _running(self) -> Iterator[_Run]:
        run = _Run(self._say, self._paint, self._server, self._folder)
        try:
            yield run
        except BaseException:
            # What went wrong is the news, not how nfpkd took being stopped.
            with contextlib.suppress(_StoryError, TimeoutError):
                run.stop()
            raise
        run.stop()


class _Run:
    """`nfpkd run` on the server, and what it logs."""

    def __init__(self, say: Say, paint: Paint, server: Namespace, folder: Path) -> None:
        self._say = say
        self._paint = paint
        self._server = server
        self._actions = folder / "actions.d"
        self._state = folder / "state"
        self._process: Followed | None = None

    def start(self) -> None:
        self._process = Followed(
            self._server, [*NFPKD, "run", "--actions", str(self._actions), "--state-dir", str(self._state)]
        )
        self.wait_for("guarding")

    def wait_for(self, text: str) -> None:
        """Repeat the log up to the first line with *text*."""
        if self._process is None:
            raise _StoryError("nfpkd is not running")
        self._repeat(self._process.wait_for(text))

    def stop(self) -> None:
        """End it as an init system would; harmless when it has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        self._repeat(process.stop())
        if process.wait():
            raise _StoryError(f"nfpkd ended with exit code {process.wait()}")

    def _repeat(self, lines: list[str]) -> None:
        for line in lines:
            self._say(self._paint(Role.ASIDE, f"   log: {line}"))


_ECHO_SERVER = """
import socket, sys, threading
def echo(connection):
    while data := connection.recv(4096):
        connection.sendall(data)
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
while True:
    threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()
"""
