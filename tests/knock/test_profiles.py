"""Profiles from knock.toml and from ipt_pkd's file, and how those files have to be kept."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfpkd.errors import ProfileError
from nfpkd.knock.profiles import Profile, find_profile, list_profile_names, parse_ipt_pkd, parse_profiles
from nfpkd.rules.model import parse_key

PATH = Path("/home/eve/.config/nfpkd/knock.toml")
INI = Path("/home/eve/.ipt_pkd.ini")
SECRET = "0x5b1ecafe5b1ecafe"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def toml_path(home: Path) -> Path:
    return home / ".config" / "nfpkd" / "knock.toml"


def refusal(text: str, parse: Any = parse_profiles, *rest: Any) -> str:
    with pytest.raises(ProfileError) as caught:
        parse(text, PATH, *rest)
    return str(caught.value)


def test_a_profile_with_every_field() -> None:
    profiles = parse_profiles(
        """
        [saturn]
        host = "saturn.example.org"
        tag = "SSH1"
        key = "secret words"
        port = 4711
        family = 4
        connect = 22
        old = true
        """,
        PATH,
    )
    assert profiles == {
        "saturn": Profile(
            "saturn.example.org",
            tag=b"SSH1",
            key=parse_key("secret words"),
            port=4711,
            family=4,
            connect=22,
            old=True,
        )
    }


def test_what_is_not_said_is_as_without_a_profile() -> None:
    assert parse_profiles("[saturn]\n", PATH) == {"saturn": Profile("saturn")}
    assert parse_profiles("", PATH) == {}
    profile = Profile("saturn")
    assert (profile.tag, profile.port, profile.family, profile.connect, profile.old) == (
        b"PKD0",
        None,
        None,
        None,
        False,
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("saturn.knock", "/home/eve/.config/nfpkd/saturn.knock"),
        ("/etc/saturn.knock", "/etc/saturn.knock"),
        ("~/.ssh/saturn.knock", "{home}/.ssh/saturn.knock"),
    ],
)
def test_a_key_file_is_found_from_the_profiles_folder(home: Path, written: str, meant: str) -> None:
    profile = parse_profiles(f"[saturn]\nkey-file = '{written}'", PATH)["saturn"]
    assert str(profile.key_file) == meant.format(home=home)


@pytest.mark.parametrize("written", ["\"pass show 'nfpkd/my saturn'\"", '["pass", "show", "nfpkd/my saturn"]'])
def test_a_key_command_is_a_text_or_a_list(written: str) -> None:
    profile = parse_profiles(f"[saturn]\nkey-command = {written}", PATH)["saturn"]
    assert profile.key_command == ("pass", "show", "nfpkd/my saturn")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("host = ''", '"host" is empty'),
        ("host = 1", '"host" must be text in quotes'),
        ("tag = 'SSH12'", '"tag" is 5 bytes long; at most 4 fit'),
        ("tag = 0x01020304", '"tag" must be text in quotes'),
        (f"key = {SECRET}", '"key" must be text in quotes'),
        ("key = ''", '"key" is empty'),
        (f"key = '{SECRET}f'", '"key" has an odd number of hex digits'),
        (f"key = '{SECRET}zz'", '"key" starts with "0x" and must go on with hex digits only'),
        (f"key = '{SECRET * 5}'", '"key" '),
        ("key-file = true", '"key-file" must be text in quotes'),
        ("key-file = '~nobody-of-that-name/key'", '"key-file" begins with ~ and the name of nobody here'),
        ("key-command = []", '"key-command" must be a command: text, or a list of words in quotes'),
        ("key-command = ' '", '"key-command" must be a command'),
        ("key-command = ['pass', 1]", '"key-command" must be a command'),
        ("key-command = 'pass \"show'", '"key-command" has a quote that does not end'),
        ("port = 0", '"port" must be a number from 1 to 65535'),
        ("port = true", '"port" must be a number from 1 to 65535'),
        ("port = '22'", '"port" must be a number from 1 to 65535'),
        ("connect = 65536", '"connect" must be a number from 1 to 65535'),
        ("family = 5", '"family" must be 4 or 6'),
        ("family = 4.0", '"family" must be 4 or 6'),
        ("old = 1", '"old" must be true or false'),
        (
            "prot = 22",
            'there is no field "prot"; the fields are host, tag, key, key-file, key-command, port, family, ',
        ),
        ("org = {}", '"org" is a table of its own: a name with dots needs quotes, ["saturn.org"]'),
        (
            f"key = '{SECRET}'\nkey-file = 'f'\nkey-command = 'c'",
            '"key" and "key-file" and "key-command" contradict each other: keep one of them',
        ),
    ],
)
def test_a_wrong_field_is_named_and_its_value_is_not(line: str, said: str) -> None:
    message = refusal(f"[saturn]\n{line}\n")
    assert message.startswith(f'{PATH}: profile "saturn": {said}')
    assert SECRET[:10] not in message


def test_everything_that_is_wrong_is_listed() -> None:
    message = refusal("port = 22\n[saturn]\nport = 0\nhots = 'a'\n[mars]\nfamily = 7\n")
    assert [line.partition(": ")[2].split(":")[0] for line in message.splitlines()] == [
        '"port" belongs to no profile',
        'profile "saturn"',
        'profile "saturn"',
        'profile "mars"',
    ]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[saturn]\nhost = saturn\n", ":2:8: is not TOML: invalid value"),
        (f"[saturn]\nkey = '{SECRET}\n", ": is not TOML: expected"),
        (f"[saturn]\nkey {SECRET}\n", ":2:5: is not TOML: "),
        ("[saturn]\n[saturn]\n", ":2:8: is not TOML: "),
        ("[saturn]\nhost = ", ": is not TOML: "),
        ("a = " + "[" * 5000, ": is not TOML"),
        ("a = " + "1" * 5000, ": is not TOML"),
    ],
)
def test_what_is_not_toml_has_its_place(text: str, where: str) -> None:
    message = refusal(text)
    assert message.startswith(f"{PATH}{where}")
    assert SECRET not in message


@given(st.text(max_size=200) | st.text("[]=:;#'\"\n% {}sak0", max_size=60))
def test_any_text_is_profiles_or_an_error(text: str) -> None:
    for parse in (parse_profiles, lambda text, path: parse_ipt_pkd(text, path, "s")):
        with contextlib.suppress(ProfileError):
            assert all(isinstance(profile, Profile) for profile in parse(text, PATH).values())


def test_a_section_of_ipt_pkds_own_example() -> None:
    text = "[saturn]\nhost=saturn\nkey=0x74657374\n\n[saturn2]\nhost=192.168.0.1\nkey=test\n"
    profile = Profile("saturn", key=parse_key("test"))
    assert parse_ipt_pkd(text, INI, "saturn") == {"saturn": profile}
    assert parse_ipt_pkd(text, INI, "saturn2") == {"saturn2": Profile("192.168.0.1", key=parse_key("test"))}
    assert parse_ipt_pkd(text, INI, "pluto") == {}


# What ipt_pkd's knock.py, on Python 2, reads from these lines; tried with Python 2.7's ConfigParser.
@pytest.mark.parametrize(
    ("lines", "profile"),
    [
        ("tag=SSHK\nport=4711", Profile("h", b"SSHK", parse_key("k"), port=4711)),
        ("tag = 0x01020304", Profile("h", b"\1\2\3\4", parse_key("k"))),
        ("old=1", Profile("h", key=parse_key("k"), old=True)),
        ("old=no", Profile("h", key=parse_key("k"), old=True)),
        ("old=new", Profile("h", key=parse_key("k"))),
        ("KEY: other", Profile("h", key=parse_key("other"))),
        ("key = two words ; a comment", Profile("h", key=parse_key("two words"))),
        ("key = a;b", Profile("h", key=parse_key("a;b"))),
        ("key = 50%off", Profile("h", key=parse_key("50%off"))),
        ("; key = x\n# key = y\ncolour = red", Profile("h", key=parse_key("k"))),
        ("[DEFAULT]\ntag = SSHK", Profile("h", b"SSHK", parse_key("k"))),
    ],
)
def test_the_file_of_ipt_pkd_is_read_as_its_own_client_reads_it(lines: str, profile: Profile) -> None:
    assert parse_ipt_pkd(f"[saturn]\nhost=h\nkey=k\n{lines}\n", INI, "saturn") == {"saturn": profile}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"key={SECRET}\n[saturn]\n", ":1:1: stands before the first line [NAME]"),
        (f"[saturn]\n\n{SECRET}\n=\n", ':3:1: is neither [NAME] nor "field = value"'),
        ("[saturn]\nkey=k\n", ': profile "saturn": "host" is missing'),
        ("[saturn]\nhost=h\n", ': profile "saturn": "key" is missing'),
        (f"[saturn]\nhost=h\nkey={SECRET}f\n", ': profile "saturn": "key" has an odd number of hex digits'),
        ("[saturn]\nhost=h\nkey=k\nport=ssh\n", ': profile "saturn": "port" must be a number from 1 to 65535'),
        ("[saturn]\nhost=h\nkey=k\nport=65536\n", ': profile "saturn": "port" must be a number from 1 to 65535'),
        ("[saturn]\nhost=h\nkey=k\ntag=SSHK1\n", ': profile "saturn": "tag" is 5 bytes long; at most 4 fit'),
    ],
)
def test_a_wrong_file_of_ipt_pkd_is_an_error_without_its_lines(text: str, said: str) -> None:
    message = refusal(text, parse_ipt_pkd, "saturn")
    assert message.startswith(f"{PATH}{said}")
    assert SECRET not in message


def test_knock_toml_comes_first(home: Path) -> None:
    write(home / ".ipt_pkd.ini", "[saturn]\nhost=old\nkey=k\n[mars]\nhost=mars\nkey=k\n")
    assert find_profile("saturn") == Profile("old", key=parse_key("k"))
    write(toml_path(home), "[saturn]\nhost='new'\n")
    assert find_profile("saturn") == Profile("new")
    assert find_profile("mars") == Profile("mars", key=parse_key("k"))
    assert find_profile("pluto") is None


def test_no_files_are_no_profiles(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_profile("saturn") is None
    write(home / "file", "")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "file"))
    assert find_profile("saturn") is None


def test_without_a_home_there_are_no_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert find_profile("saturn") is None
    assert list(list_profile_names()) == []


def test_the_folder_is_that_of_the_desktop(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(toml_path(home), "[saturn]\nhost='home'\n")
    write(home / "xdg" / "nfpkd" / "knock.toml", "[saturn]\nhost='xdg'\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "xdg"))
    assert find_profile("saturn") == Profile("xdg")
    monkeypatch.chdir(home)
    for ignored in ("xdg", ""):
        monkeypatch.setenv("XDG_CONFIG_HOME", ignored)
        assert find_profile("saturn") == Profile("home")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
@pytest.mark.parametrize("kind", ["toml", "ini"])
def test_keys_that_others_can_read_are_refused(home: Path, kind: str, mode: int) -> None:
    file = toml_path(home) if kind == "toml" else home / ".ipt_pkd.ini"
    write(file, "[saturn]\nhost='h'\nkey='k'\n", mode)
    with pytest.raises(ProfileError) as caught:
        find_profile("saturn")
    assert str(caught.value) == f'{file}: others can read the key in this file: run "chmod 600 {file}"'
    file.chmod(0o600)
    assert find_profile("saturn") is not None


def test_profiles_without_keys_are_nobodys_secret_but_may_not_be_changed(home: Path) -> None:
    file = write(toml_path(home), "[saturn]\nkey-command='pass show saturn'\n", 0o644)
    assert find_profile("saturn") is not None
    file.chmod(0o664)
    with pytest.raises(ProfileError, match=f'others can change this file: run "chmod go-w {file}"'):
        find_profile("saturn")


def test_a_file_of_somebody_elses_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(toml_path(home), "[saturn]\n")
    owner = file.stat().st_uid
    if owner == 0:
        os.chown(file, 4711, -1)
        owner = 4711
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ProfileError, match=f"belongs to user {owner}, who could change it"):
        find_profile("saturn")


def test_a_file_that_is_none_is_an_error(home: Path) -> None:
    file = toml_path(home)
    file.mkdir(parents=True)
    with pytest.raises(ProfileError, match="is a directory"):
        find_profile("saturn")
    file.rmdir()
    file.write_bytes(b"[saturn]\nhost='\xff'\n")
    with pytest.raises(ProfileError, match=f"^{file}:2:1: is not UTF-8 text"):
        find_profile("saturn")
    file.write_bytes(b"#" * (5 << 20))
    with pytest.raises(ProfileError, match="is larger than 4 MiB"):
        find_profile("saturn")


def test_names_are_listed_without_a_look_at_the_fields(home: Path) -> None:
    write(toml_path(home), f"stray = 1\n[saturn]\nkey = '{SECRET}'\n['mars.example']\ncolour = 1\n", 0o644)
    write(home / ".ipt_pkd.ini", f"[DEFAULT]\ntag=T\n[moon]\nkey: {SECRET}\n[sun]\n", 0o644)
    assert list(list_profile_names()) == ["saturn", "mars.example", "moon", "sun"]


@pytest.mark.parametrize(
    "content", [b"[saturn", b"[saturn]\nhost='\xff'\n", b"[a]\n" + b"#" * (5 << 20), b"a=" + b"[" * 10**5]
)
def test_a_wrong_file_lists_no_names(home: Path, content: bytes) -> None:
    write(home / ".ipt_pkd.ini", "[moon]\n")
    write(toml_path(home), "").write_bytes(content)
    assert list(list_profile_names()) == ["moon"]
    write(toml_path(home), "[saturn]\n")
    (home / ".ipt_pkd.ini").write_bytes(b"moon\n" + content)
    assert list(list_profile_names()) == ["saturn"]


def test_what_is_no_file_lists_no_names(home: Path) -> None:
    assert list(list_profile_names()) == []
    toml_path(home).mkdir(parents=True)
    os.mkfifo(home / ".ipt_pkd.ini")
    assert list(list_profile_names()) == []


def test_a_file_that_cannot_be_opened_lists_no_names(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(toml_path(home), "[saturn]\n")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert list(list_profile_names()) == []
