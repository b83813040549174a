"""The rules and the table that inputs are made for."""

from __future__ import annotations

from nfpkd.firewall.ruleset import Options, compile_ruleset
from nfpkd.rules.build import build_rules
from nfpkd.rules.positions import Document

# The key of WIRE.md's vector.  No message, table or log may show it.
KEY_TEXT = "testing test test"
VECTOR_PORT = 1234
OTHER_KEY_TEXT = "0x00112233445566778899aabbccddeeff"
# The one rule that takes knocks at some ports only.
KNOCK_PORTS = (4000, 5000)

_TEXT = f"""[
  {{"name": "vector", "tag": "test", "key": "{KEY_TEXT}", "port": 22, "protocol": "tcp", "skew": -1, "old": true,
    "rate": {{"knocks": 86400, "per": 1, "burst": 86400}}}},
  {{"name": "crowd", "tag": "test", "key": "another key", "port": "8000-8010", "interfaces": ["eth0"],
    "grant": {{"ipv4": 24, "ipv6": 64}}}},
  {{"name": "somewhere", "tag": "PKD0", "key": "{OTHER_KEY_TEXT}", "port": [53, 51820], "protocol": "udp",
    "knock-port": "{KNOCK_PORTS[0]}-{KNOCK_PORTS[1]}", "extend": true, "from": ["192.0.2.0/24", "2001:db8::/32"]}}
]"""

RULES = tuple(placed.rule for placed in build_rules(Document("known", _TEXT)).rules)
OPTIONS = Options(queue=7, trusted=("lo",))
RULESET = compile_ruleset(RULES, OPTIONS)
