"""No packet gets through a closed port while rules are reloaded."""

from __future__ import annotations

import itertools
import os
import sys

import pytest

from nfpkd.demo.process import Followed
from nfpkd.rules.model import PortRange, Protocol, Reject, Rule, TimedKey, parse_key, parse_tag
from support.network import DEFAULTS, SERVER4, Network, open_udp
from support.probes import PROBES, count_segments

PORT = 2222
# The guest is an emulated machine, some ten times slower.
RELOADS = 200 if "NFPKD_GUEST" in os.environ else 2000


def make_rule(name: str, port: int, tag: str = "PKD0", **fields: object) -> Rule:
    return Rule(
        name,
        (TimedKey(parse_key("k")),),
        parse_tag(tag),
        (PortRange(port, port),),
        (Protocol.TCP, Protocol.UDP),
        **fields,  # type: ignore[arg-type]
    )


# Everything that a reload can change while the probed port stays closed.
VARIANTS = [
    (make_rule("door", PORT),),
    (make_rule("door", PORT, description="changed"),),
    (make_rule("door", PORT, reject=Reject.RESET), make_rule("more", 3333, reject=Reject.RESET)),
    (make_rule("renamed", PORT, tag="NEW"), make_rule("door", 4444)),
    (make_rule("door", PORT, reject=Reject.ICMP), make_rule("shared", PORT, reject=Reject.ICMP)),
]


@pytest.mark.guest
def test_no_probe_gets_through_thousands_of_reloads(network: Network) -> None:
    network.enforce(*VARIANTS[0])
    probes = [sys.executable, "-c", PROBES, SERVER4, str(PORT)]
    with open_udp(network.server, PORT) as server, Followed(network.client, probes) as prober:
        server.setblocking(False)
        prober.wait_for("probing")
        with network.server.entered():
            firewall = network.firewall()
            changed = sum(
                bool(firewall.apply(rules, DEFAULTS).sent)
                for rules in itertools.islice(itertools.cycle(VARIANTS[1:]), RELOADS)
            )
        assert changed == RELOADS
        (line,) = prober.stop()
        sent = int(line.removeprefix("sent "))
        with pytest.raises(BlockingIOError):
            server.recv(64)
    assert sent > RELOADS
    assert network.state().counters["refused"].packets > RELOADS
    assert count_segments(network) == 0
