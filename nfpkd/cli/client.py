"""The client's command: knock."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from nfpkd.cli.completion import complete_profile
from nfpkd.errors import KnockError

if TYPE_CHECKING:
    from nfpkd.knock.client import Address, SentKnock
    from nfpkd.knock.profiles import Profile
    from nfpkd.rules.model import Secret

_STDIN, _STDOUT = 0, 1


class _KnockCommand(click.Command):
    """A command whose --exec takes all the words behind it, which click's own options cannot."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--exec" in args:
            at = args.index("--exec")
            args = args[:at] + ([f"--exec={word}" for word in args[at + 1 :]] or ["--exec"])
        return super().parse_args(ctx, args)


@click.command(cls=_KnockCommand)
@click.argument("name", required=False, metavar="NAME", shell_complete=complete_profile)
@click.option(
    "--host", "host_option", metavar="NAME", shell_complete=complete_profile, help="The same as the argument NAME."
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="P",
    help="The UDP port to knock at; a random one if not given.",
)
@click.option(
    "--tag",
    envvar="NFPKD_TAG",
    show_default="PKD0",
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
    type=click.Path(allow_dash=True, path_type=Path),
    envvar="NFPKD_KEY_FILE",
    show_envvar=True,
    metavar="F",
    help="Read the key from the first line of this file, which nobody else may read; - is standard input.",
)
@click.option(
    "--key-fd",
    type=click.IntRange(0),
    metavar="N",
    help="Read the key from the next line of this open file descriptor.",
)
@click.option("-4", "family", type=int, flag_value=4, help="Knock, and connect, by IPv4 only.")
@click.option("-6", "family", type=int, flag_value=6, help="Knock, and connect, by IPv6 only.")
@click.option(
    "--wait",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Then connect to this TCP port, to see that it is open, with up to 3 more knocks if need be.",
)
@click.option(
    "--proxy",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Connect as --wait does, and pass on what comes and goes: for ssh's ProxyCommand.",
)
@click.option(
    "--exec",
    "command",
    multiple=True,
    metavar="CMD...",
    help="Then become this command. It takes the rest of the line, so it comes last.",
)
def knock(
    name: str | None,
    host_option: str | None,
    port: int | None,
    tag: str | None,
    key: str | None,
    key_file: Path | None,
    key_fd: int | None,
    family: int | None,
    wait: int | None,
    proxy: int | None,
    command: tuple[str, ...],
) -> None:
    """Send a knock to NAME, and go through the door if asked to.

    NAME is a profile: a table [NAME] in ~/.config/nfpkd/knock.toml, or a section of ~/.ipt_pkd.ini, which says
    what the options here leave open. If there is none, NAME is a host, by name or address.

    A key that is named nowhere is asked for.
    """
    import socket
    from dataclasses import replace

    from nfpkd.knock.client import find_addresses, send_knock
    from nfpkd.knock.profiles import Profile, find_profile
    from nfpkd.rules.model import format_tag

    if (name is None) == (host_option is None):
        raise click.UsageError("Give the host once: nfpkd knock HOST")
    if proxy is not None and (wait is not None or command):
        raise click.UsageError("--proxy contradicts --wait and --exec")
    if command:
        _check_command(command[0])
    name = name or host_option or ""
    given: dict[str, Any] = {"port": port, "tag": _parse_tag(tag), "family": family, "connect": proxy or wait}
    profile = find_profile(name) or Profile(name)
    profile = replace(profile, **{field: value for field, value in given.items() if value is not None})
    families = {None: socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}
    # Looked up first: for a name with a slip in it nobody need type a key, or unlock one.
    addresses = find_addresses(profile.host, families[profile.family])
    secret = _read_key(profile, key, key_file, key_fd, proxy is not None)

    def send(address: Address) -> SentKnock:
        return send_knock(address, secret, profile.tag, port=profile.port, old=profile.old)

    if profile.connect is None:
        sent = send(addresses[0])
        news = f"knock sent to {sent.address} port {sent.port}/udp with tag {format_tag(profile.tag)}"
    else:
        from nfpkd.knock.connect import connect_behind_knock
        from nfpkd.knock.relay import relay

        with connect_behind_knock(addresses, profile.connect, send, say=_say) as connection:
            if proxy is not None:
                relay(connection, _STDIN, _STDOUT)
                return
            news = f"connected to {connection.getpeername()[0]} port {profile.connect}/tcp"
    if command:
        _become(command)
    click.echo(news)


def _say(text: str) -> None:
    from nfpkd.logs import escape

    click.echo(f"nfpkd: {escape(text)}", err=True)


def _parse_tag(text: str | None) -> bytes | None:
    from nfpkd.rules.model import parse_tag

    try:
        return None if text is None else parse_tag(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--tag") from None


def _read_key(profile: Profile, key: str | None, key_file: Path | None, key_fd: int | None, proxy: bool) -> Secret:
    """Return the key that the command line names; otherwise the profile's, or what is typed.

    With *proxy*, standard input is for the server alone.
    """
    from nfpkd.knock.keys import read_key_descriptor, read_key_file

    given = {"--key": key, "--key-file": key_file, "--key-fd": key_fd}
    options = [option for option, value in given.items() if value is not None]
    if len(options) > 1:
        raise click.UsageError(f"{' and '.join(options)} contradict each other")
    if not options:
        return _read_profiles_key(profile, proxy)
    if str(key_file) == "-":
        key_fd = _STDIN
    if proxy and key_fd == _STDIN:
        raise click.UsageError("With --proxy, standard input goes to the server: read the key from elsewhere")
    try:
        if key_fd is not None:
            key = read_key_descriptor(key_fd)
        elif key_file is not None:
            key = read_key_file(key_file)
        return _parse_key(key or "")
    except KnockError as error:
        raise click.BadParameter(str(error), param_hint=options[0]) from None


def _read_profiles_key(profile: Profile, proxy: bool) -> Secret:
    from nfpkd.knock.keys import read_key_file, run_key_command

    if profile.key is not None:
        return profile.key
    if profile.key_file is not None:
        return _parse_key(read_key_file(profile.key_file), f"{profile.key_file}: ")
    if profile.key_command:
        return _parse_key(run_key_command(profile.key_command), f"the key command {profile.key_command[0]}: ")
    if proxy and not _has_terminal():
        raise KnockError("no terminal to ask for the key: name a key file, or a key command in a profile")
    return _parse_key(click.prompt("Key", hide_input=True, err=True))


def _parse_key(text: str, where: str = "") -> Secret:
    from nfpkd.rules.model import is_odd_hex, parse_key

    try:
        secret = parse_key(text)
    except ValueError as error:
        raise KnockError(f"{where}the key {error}") from None
    if is_odd_hex(text):
        click.echo(
            "warning: the key has an odd number of hex digits; its last byte is read with a 0 behind",
            err=True,
        )
    return secret


def _has_terminal() -> bool:
    """Tell whether there is somebody to ask; without one, a prompt would read standard input."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _check_command(name: str) -> None:
    import shutil

    # Said before a knock is spent on it.
    if shutil.which(name) is None:
        raise click.BadParameter(f"there is no command {name!r}", param_hint="--exec")


def _become(command: tuple[str, ...]) -> NoReturn:
    """Replace this process by *command*, which finds everything as a shell would have left it."""
    import signal

    # Python ignores them, and what is ignored stays so in the new program.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.environ.pop("NFPKD_KEY", None)
    try:
        os.execvp(command[0], command)  # noqa: S606  (no shell is wanted)
    except OSError as error:
        raise KnockError(f"cannot run {command[0]}: {error.strerror}") from None
