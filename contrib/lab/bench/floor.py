"""The floor: what there is without nfpkd, made of the kernel's own parts."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.bench.stage import Service, serving
from lab.hosts import Lab
from nfpkd.firewall import nft
from nfpkd.firewall.kernel import NftablesKernel
from nfpkd.firewall.nft import Transaction
from nfpkd.verifier.queue import COPY_RANGE, QUEUE_LENGTH, SOCKET_BUFFER
from support.network import Network

_TABLE = nft.Table("inet", "floor")
_QUEUE = 0

# As nfpkd's own listener, but that it looks at nothing.
_EMPTY_LISTENER = f"""
from netfilterqueue import NetfilterQueue
queue = NetfilterQueue()
queue.bind({_QUEUE}, lambda packet: packet.accept(),
           max_len={QUEUE_LENGTH}, range={COPY_RANGE}, sock_len={SOCKET_BUFFER})
print("listening", flush=True)
queue.run()
"""


@contextlib.contextmanager
def queue_rules(
    network: Network,
    *,
    udp: bool = False,
    tcp_ports: Sequence[int] = (),
    payload_length: int = 0,
    hook: str = "input",
    priority: int = 0,
) -> Iterator[None]:
    """Have the server ask queue 0 about all UDP, or all of one length, and about every SYN to *tcp_ports*."""
    queue = nft.Chain(_TABLE, "ask")
    base = nft.Chain(_TABLE, "arriving", hook, priority)
    ask = nft.jump(queue.name)
    rules = []
    if udp:
        of_length = [nft.match(nft.payload("udp", "length"), payload_length + 8)] if payload_length else []
        rules.append(nft.Rule(_TABLE, base.name, (nft.match(nft.meta("l4proto"), "udp"), *of_length, ask)))
    if tcp_ports:
        new = nft.match(nft.ct("state"), "new", "in")
        ports = nft.match(nft.payload("tcp", "dport"), nft.anonymous_set(list(tcp_ports)))
        rules.append(nft.Rule(_TABLE, base.name, (ports, new, ask)))
    made: tuple[nft.Declaration, ...] = (queue, base, nft.Rule(_TABLE, queue.name, (nft.queue_bypass(_QUEUE),)), *rules)
    with network.server.entered():
        NftablesKernel().apply(Transaction((nft.add_table(_TABLE), *map(nft.add, made))))
    yield
    network.nft("delete", "table", *_TABLE)


@contextlib.contextmanager
def empty_listener(lab: Lab) -> Iterator[Service]:
    """Have a Python program on queue 0 that accepts every packet unseen."""
    command = [sys.executable, "-c", _EMPTY_LISTENER]
    with serving(lab.network.server, command, lab.folder / "listener.log", "listening") as service:
        yield service


def load_ruleset(network: Network, folder: Path, text: str) -> None:
    """Have the server's kernel hold what *text* says, in nft's own language."""
    file = folder / "floor.nft"
    file.write_text(text)
    network.nft("-f", str(file))
