"""How many genuine knocks are granted in a second, sustained."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping

from lab.bench.knocks import make_knocks, send_knocks
from lab.bench.measurement import Figure, Measurement, Scale, Target
from lab.bench.opening import Door
from lab.bench.peers import FWKNOP_PCAP, FWKNOP_UDP, KNOCKD, NFPKD_ITSELF
from lab.bench.rows.opening import find_knocker, missing_knockers
from lab.bench.stage import guarding, make_stage, open_rule
from lab.hosts import Lab
from nfpkd.firewall.layout import GRANTS
from nfpkd.verifier.listeners import find_queue_listeners
from support.network import SERVER4, eventually, open_udp

_PEERS = (FWKNOP_UDP, FWKNOP_PCAP, KNOCKD)
# More than are granted in a second, and, over all, than one network of addresses is asked for.
_KNOCKS_A_SECOND = 25_000
_MOST_KNOCKS = 60_000
_PEERS_KNOCKS = 100
# A peer that has granted nothing for so long has lost the rest.
_QUIET_SECONDS = 1.5


class Granted(Measurement):
    """Genuine knocks, each from an address of its own, as fast as they can be sent; counted are the kernel's grants.

    nfpkd runs as it is shipped: it remembers knocks on disk and logs each.  The peers get a
    hundred at once, and the time runs until their last grant.
    """

    name = "granted"
    title = "genuine knocks granted a second, sustained"
    systems = (NFPKD_ITSELF.name, *(peer.name for peer in _PEERS))
    figures = (Figure("granted", "knocks/s"), Figure("of those sent", "%"))
    reference = NFPKD_ITSELF.name
    targets = (Target("at least 5,000", NFPKD_ITSELF.name, "granted", at_least=5000),)

    def __init__(self, scale: Scale) -> None:
        self._seconds = scale.seconds
        self._peers_knocks = 10 if scale.quick else _PEERS_KNOCKS

    def missing(self) -> Mapping[str, str]:
        return missing_knockers(_PEERS)

    def run(self, system: str) -> Mapping[str, float]:
        with make_stage() as lab:
            if system == NFPKD_ITSELF.name:
                sent, granted, seconds = self._flood(lab)
            else:
                with find_knocker(system).running(lab) as door:
                    sent, granted, seconds = self._knock_at_peer(lab, door)
        if not granted:
            raise RuntimeError("nothing was granted")
        return {"granted": granted / seconds, "of those sent": 100 * granted / sent}

    def _flood(self, lab: Lab) -> tuple[int, int, float]:
        knocks = make_knocks(min(_MOST_KNOCKS, int(self._seconds * _KNOCKS_A_SECOND)))
        sources = [lab.fresh_address() for _ in knocks]
        lab.actions.write("rules.json", open_rule(window=3600))
        with guarding(lab):
            started = time.monotonic()
            sent = send_knocks(lab.network, knocks, sources=sources, seconds=self._seconds)
            with lab.network.server.entered():
                eventually(lambda: not any(listener.waiting for listener in find_queue_listeners().values()))
            seconds = time.monotonic() - started
            return sent, _count_grants(lab), seconds

    def _knock_at_peer(self, lab: Lab, door: Door) -> tuple[int, int, float]:
        sources = [lab.fresh_address() for _ in range(self._peers_knocks)]
        knockings = [door.make(number, source) for number, source in enumerate(sources)]
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(open_udp(lab.network.client, 0, 4, source)) for source in sources]
            started = time.monotonic()
            for sock, knocking in zip(sockets, knockings, strict=True):
                for payload, port in knocking.datagrams:
                    sock.sendto(payload, (SERVER4, port))
            granted, at = _watch(lambda: lab.network.server.run("iptables", "-S").count("-s 198.18."), len(sources))
        return len(sources), granted, at - started


def _watch(count: Callable[[], int], all_of_them: int) -> tuple[int, float]:
    """Return the most that *count* comes to, and when it first did."""
    most, at = 0, time.monotonic()
    while most < all_of_them and time.monotonic() - at < _QUIET_SECONDS:
        if (found := count()) > most:
            most, at = found, time.monotonic()
        time.sleep(0.01)
    return most, at


def _count_grants(lab: Lab) -> int:
    listed = json.loads(lab.network.nft("--json", "list", "set", "inet", "nfpkd", GRANTS[4]))
    return sum(len(entry["set"].get("elem", [])) for entry in listed["nftables"] if "set" in entry)
