"""Fail2Ban reads nfpkd's log, and bans."""

from __future__ import annotations

from pathlib import Path

from nfpkd.demo.process import NFPKD, Followed
from support.fail2ban import configure, find_fail2ban
from support.network import (
    CLIENT4,
    SERVER4,
    STRANGER4,
    Actions,
    Network,
    eventually,
    knock,
    listen_tcp,
    outcome,
    rule,
    run_options,
    send_udp,
)

GUARDED, UNGUARDED = 2222, 4444
PORT = 4711
# Without a journal; and with nft, as there may be no iptables.
SETTINGS = """
[DEFAULT]
banaction_allports = nftables-allports

[nfpkd]
backend = polling
logpath = {log}
"""


def test_who_replays_a_knock_is_banned_and_nobody_else(network: Network, actions: Actions, tmp_path: Path) -> None:
    actions.write("door.json", rule("door", GUARDED))
    log = tmp_path / "nfpkd.log"
    config = configure(tmp_path / "fail2ban", SETTINGS.format(log=log))
    private = ["-c", str(config), "-s", str(tmp_path / "socket"), "-p", str(tmp_path / "pid")]
    nfpkd = ["sh", "-c", f'exec "$@" 2>>"{log}"', "sh", *NFPKD, "run", *run_options(actions)]
    fail2ban = [*find_fail2ban("fail2ban-server"), *private, "--logtarget", "STDOUT", "-f", "start"]
    with listen_tcp(network.server, UNGUARDED), Followed(network.server, nfpkd):
        assert eventually(lambda: log.exists() and "guarding" in log.read_text())
        with Followed(network.server, fail2ban) as banning:
            banning.wait_for("Jail 'nfpkd' started")
            knocked = knock(network.client, SERVER4, port=PORT)
            for _ in range(10):
                # Anybody can send that, in anybody's name.
                knock(network.client, SERVER4, "another key", source=STRANGER4)
            for _ in range(4):
                send_udp(network.client, knocked, SERVER4, PORT)
            assert eventually(lambda: log.read_text().count("reason=replayed") == 4)
            banning.wait_for(f"Found {CLIENT4}")
            assert outcome(network.client, SERVER4, UNGUARDED) == "open"
            send_udp(network.client, knocked, SERVER4, PORT)
            banning.wait_for(f"Ban {CLIENT4}")
            assert eventually(lambda: outcome(network.client, SERVER4, UNGUARDED) != "open")
            assert outcome(network.client, SERVER4, UNGUARDED, STRANGER4) == "open"
            assert not any(STRANGER4 in line for line in banning.lines)
