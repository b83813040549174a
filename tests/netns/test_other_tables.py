"""Tables of other tools, with all that nft 1.0.6 cannot list as JSON."""

from __future__ import annotations

from support.network import Actions, Network, rule


def test_tables_with_flags_do_not_disturb(network: Network, actions: Actions) -> None:
    """nft 1.0.6 uses freed memory for the JSON of a table with flags; firewalld's own table has one."""
    actions.write("door.json", rule("door", 2222))
    for name in ("first", "second"):
        network.nft("add", "table", "inet", name, "{ flags dormant; }")
    before = network.nft("list", "ruleset")
    for command in (["status"], ["teardown"], ["apply", "--actions", str(actions.path)], ["status"], ["teardown"]):
        done = network.nfpkd(*command)
        assert done.returncode == 0, done.stderr
    assert network.nft("list", "ruleset") == before
