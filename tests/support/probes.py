"""A stream of probes against a closed port, and how to tell whether one got through."""

from __future__ import annotations

from support.network import Network

# Probes as fast as they go: datagrams, and segments from a raw socket.  It
# prints how many it sent when it is told to stop.
PROBES = """
import signal, socket, struct, sys
address, port = sys.argv[1], int(sys.argv[2])
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
syn = struct.pack(">HHIIBBHHH", 5000, port, 1, 0, 5 << 4, 2, 512, 0, 0)
print("probing", flush=True)
sent = 0
while not stopped:
    for _ in range(100):
        udp.sendto(b"probe", (address, port))
        raw.sendto(syn, (address, 0))
    sent += 200
print("sent", sent, flush=True)
"""


def count_segments(network: Network) -> int:
    """Return how many segments the server's TCP has seen (RFC 4022, tcpInSegs)."""
    names, values = [
        line.split() for line in network.server.run("cat", "/proc/net/snmp").splitlines() if line.startswith("Tcp:")
    ]
    return int(values[names.index("InSegs")])
