"""Traffic from load.c, in a namespace, for as long as it is wanted."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from nfpkd.demo.namespaces import Namespace
from nfpkd.demo.process import Followed
from nfpkd.knock.wire import PAYLOAD_LENGTH
from nfpkd.rules.model import parse_tag

# Reserved for benchmarks (RFC 2544): nobody's addresses.
ONE_SOURCE = "198.19.255.254"
MANY_SOURCES = "10.0.0.0"


class Sent(NamedTuple):
    """What a generator sent, or a sink received."""

    packets: int
    seconds: float

    @property
    def rate(self) -> float:
        """Packets a second."""
        return self.packets / self.seconds if self.seconds else 0.0


class Traffic:
    """Traffic that is under way; `stop` tells what it came to."""

    def __init__(self, followed: Followed) -> None:
        self._followed = followed

    def stop(self) -> Sent:
        """End it; raises RuntimeError if it had ended by itself."""
        lines = self._followed.stop()
        try:
            packets, seconds = lines[-1].split()
            return Sent(int(packets), float(seconds))
        except (IndexError, ValueError):
            raise RuntimeError(f"the load ended early: {lines}") from None


class Load:
    """The compiled generator."""

    def __init__(self, program: Path) -> None:
        self._program = str(program)

    @contextlib.contextmanager
    def knocks(
        self, host: Namespace, address: str, port: int, *, tag: str, rate: int, sources: int = 1
    ) -> Iterator[Traffic]:
        """Have *host* send knock-shaped garbage with *tag*, *rate* packets a second, as from so many *sources*."""
        first = ONE_SOURCE if sources == 1 else MANY_SOURCES
        shown = parse_tag(tag).hex()
        with self._run(host, "knocks", address, str(port), shown, str(rate), first, str(sources)) as followed:
            yield Traffic(followed)

    @contextlib.contextmanager
    def udp(
        self, host: Namespace, address: str, port: int, *, rate: int = 0, size: int = 2 * PAYLOAD_LENGTH
    ) -> Iterator[Traffic]:
        """Have *host* send other datagrams, *rate* a second or as many as it can."""
        with self._run(host, "udp", address, str(port), str(size), str(rate), ONE_SOURCE, "1") as followed:
            yield Traffic(followed)

    @contextlib.contextmanager
    def sink(self, host: Namespace, port: int) -> Iterator[Traffic]:
        """Have *host* count the datagrams that arrive at *port*; the time runs from the first to the last."""
        with self._run(host, "sink", str(port)) as followed:
            followed.wait_for("ready")
            yield Traffic(followed)

    def _run(self, host: Namespace, *arguments: str) -> Followed:
        return Followed(host, [self._program, *arguments])


@contextlib.contextmanager
def build_load() -> Iterator[Load]:
    """Compile load.c, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "load"
        subprocess.run(
            ["cc", "-O2", "-Wall", "-Werror", "-o", str(program), str(Path(__file__).with_name("load.c"))], check=True
        )
        yield Load(program)
