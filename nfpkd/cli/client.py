"""The client's command: knock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from nfpkd.rules.model import Secret


@click.command()
@click.argument("host", required=False, metavar="[HOST]")
@click.option("--host", "host_option", metavar="HOST", help="The same as the argument HOST.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="P",
    help="The UDP port to knock at; a random one if not given.",
)
@click.option(
    "--tag",
    default="PKD0",
    envvar="NFPKD_TAG",
    show_default=True,
    show_envvar=True,
    metavar="T",
    help="The rule's tag: up to 4 bytes of text, or hex behind 0x.",
)
@click.option(
    "--key",
    envvar="NFPKD_KEY",
    show_envvar=True,
    metavar="K",
    help="The rule's key. Other users of this machine can see it in the process list; --key-file is safer.",
)
@click.option(
    "--key-file",
    type=click.File("r", encoding="utf-8"),
    envvar="NFPKD_KEY_FILE",
    show_envvar=True,
    metavar="F",
    help="Read the key from the first line of this file; - is standard input.",
)
@click.option("-4", "family", flag_value="4", help="Knock by IPv4 only.")
@click.option("-6", "family", flag_value="6", help="Knock by IPv6 only.")
def knock(
    host: str | None,
    host_option: str | None,
    port: int | None,
    tag: str,
    key: str | None,
    key_file: Any,
    family: str | None,
) -> None:
    """Send one knock to HOST, a name or an address.

    Without --key and --key-file the key is asked for.
    """
    import socket

    from nfpkd.knock.client import send_knock
    from nfpkd.rules.model import format_tag, parse_tag

    if (host is None) == (host_option is None):
        raise click.UsageError("Give the host once: nfpkd knock HOST")
    try:
        tag_bytes = parse_tag(tag)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--tag") from None
    families = {None: socket.AF_UNSPEC, "4": socket.AF_INET, "6": socket.AF_INET6}
    secret = _read_key(key, key_file)
    sent = send_knock(host or host_option or "", secret, tag_bytes, port=port, family=families[family])
    click.echo(f"knock sent to {sent.address} port {sent.port}/udp with tag {format_tag(tag_bytes)}")


def _read_key(key: str | None, key_file: Any) -> Secret:
    from nfpkd.rules.model import is_odd_hex, parse_key

    if key is not None and key_file is not None:
        raise click.UsageError("--key and --key-file contradict each other")
    if key_file is not None:
        try:
            text = key_file.readline().rstrip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise click.BadParameter("cannot be read as text", param_hint="--key-file") from None
    elif key is not None:
        text = key
    else:
        text = click.prompt("Key", hide_input=True, err=True)
    try:
        secret = parse_key(text)
    except ValueError as error:
        raise click.BadParameter(f"the key {error}", param_hint="--key") from None
    if is_odd_hex(text):
        click.echo(
            "warning: the key has an odd number of hex digits; its last byte is read with a 0 behind",
            err=True,
        )
    return secret
