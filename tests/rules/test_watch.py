"""Noticing that rule files changed, with real files and real events."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from watchdog.events import FileSystemEvent

from nfpkd.rules import watch
from nfpkd.rules.loader import load_rules, stamp_files
from nfpkd.rules.watch import RuleWatcher

# For machines under load; a change is noticed in less than a second.
PATIENCE = 30


class Watched:
    """A directory under watch, and what a reader that looks again on every notification has seen of it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._notified = threading.Condition()
        self._seen: object = None
        self.watcher = RuleWatcher(directory, self._look_again)

    def _look_again(self) -> None:
        with self._notified:
            self._seen = self._look()
            self._notified.notify_all()

    def _look(self) -> object:
        return stamp_files(self._directory), self._directory.exists()

    def is_up_to_date(self) -> bool:
        """Wait until the reader was told to look after the last change."""
        with self._notified:
            return self._notified.wait_for(lambda: self._seen == self._look(), PATIENCE)


@contextlib.contextmanager
def watching(directory: Path) -> Iterator[Watched]:
    watched = Watched(directory)
    watched.watcher.start()
    try:
        yield watched
    finally:
        watched.watcher.stop()


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A directory of rules in a place of its own, with one file."""
    directory = tmp_path / "etc" / "rules"
    directory.mkdir(parents=True)
    (directory / "x.json").write_text("[]")
    return directory


def test_a_file_written_in_place_is_noticed(rules: Path) -> None:
    with watching(rules) as watched:
        (rules / "x.json").write_text("[ ]")
        assert watched.is_up_to_date()


def test_a_file_renamed_over_another_is_noticed(rules: Path) -> None:
    (rules / ".x.json.swp").write_text("[  ]")
    with watching(rules) as watched:
        (rules / ".x.json.swp").replace(rules / "x.json")
        assert watched.is_up_to_date()


def test_a_file_renamed_from_elsewhere_is_noticed(rules: Path, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("[  ]")
    with watching(rules) as watched:
        (tmp_path / "new").replace(rules / "x.json")
        assert watched.is_up_to_date()


def test_a_file_deleted_and_made_again_is_noticed(rules: Path) -> None:
    with watching(rules) as watched:
        (rules / "x.json").unlink()
        assert watched.is_up_to_date()
        (rules / "x.json").write_text("[]")
        assert watched.is_up_to_date()


def test_a_new_mode_is_noticed(rules: Path) -> None:
    with watching(rules) as watched:
        (rules / "x.json").chmod(0o600)
        assert watched.is_up_to_date()


def test_a_file_moved_away_is_noticed(rules: Path, tmp_path: Path) -> None:
    with watching(rules) as watched:
        (rules / "x.json").rename(tmp_path / "x.json")
        assert watched.is_up_to_date()


# watchdog 7.1 may add the watch of a directory twice when its parent is as new; it says so and goes on.
@pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning")
def test_a_new_sub_directory_is_watched_with_what_is_in_it(rules: Path) -> None:
    with watching(rules) as watched:
        (rules / "sub" / "deep").mkdir(parents=True)
        for text in ("[]", "[ ]", "[  ]", "[   ]"):
            (rules / "sub" / "deep" / "y.json").write_text(text)
            assert watched.is_up_to_date()


def test_a_swapped_config_map_is_noticed_each_time(rules: Path) -> None:
    """As Kubernetes does it: a directory for each version, and a link ..data that is renamed over the last one."""

    def publish(version: str, text: str) -> None:
        (rules / version).mkdir()
        (rules / version / "map.json").write_text(text)
        (rules / "..data_tmp").symlink_to(version)
        (rules / "..data_tmp").rename(rules / "..data")

    publish("..1", "[]")
    (rules / "map.json").symlink_to("..data/map.json")
    with watching(rules) as watched:
        for version in ("..2", "..3"):
            publish(version, f"[{' ' * int(version[2:])}]")
            assert watched.is_up_to_date()
            watched.watcher.refresh()
        assert len(load_rules(rules, strict_modes=False).rules) == 0


def test_the_target_of_a_link_is_watched(rules: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "target"
    target.parent.mkdir()
    target.write_text("[]")
    (rules / "link.json").symlink_to(target)
    with watching(rules) as watched:
        target.write_text("[ ]")
        assert watched.is_up_to_date()


def test_the_target_of_a_link_is_watched_also_beside_the_directory(rules: Path) -> None:
    target = rules.parent / "target"
    target.write_text("[]")
    (rules / "link.json").symlink_to("../target")
    with watching(rules) as watched:
        target.write_text("[ ]")
        assert watched.is_up_to_date()


def test_a_directory_that_is_a_link_is_watched(rules: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(rules)
    with watching(tmp_path / "link") as watched:
        (rules / "x.json").write_text("[ ]")
        assert watched.is_up_to_date()


def test_a_linked_directory_is_watched(rules: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "y.json"
    target.parent.mkdir()
    target.write_text("[]")
    (rules / "link").symlink_to(target.parent)
    with watching(rules) as watched:
        target.write_text("[ ]")
        assert watched.is_up_to_date()
        target.with_name("z.json").write_text("[]")
        assert watched.is_up_to_date()


def test_a_linked_directory_is_watched_also_while_it_is_empty(rules: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (rules / "link").symlink_to(tmp_path / "elsewhere")
    with watching(rules) as watched:
        (tmp_path / "elsewhere" / "y.json").write_text("[]")
        assert watched.is_up_to_date()


def test_a_link_behind_a_link_is_watched(rules: Path, tmp_path: Path) -> None:
    """As deployments do it: a link `current` outside, swapped from one release to the next."""
    deploy = tmp_path / "deploy"
    for release in ("1", "2"):
        (deploy / release).mkdir(parents=True)
        (deploy / release / "y.json").write_text(f"[{' ' * int(release)}]")
    (deploy / "current").symlink_to("1")
    (rules / "y.json").symlink_to(deploy / "current" / "y.json")
    with watching(rules) as watched:
        (deploy / "next").symlink_to("2")
        (deploy / "next").rename(deploy / "current")
        assert watched.is_up_to_date()


def test_a_link_that_leads_elsewhere_is_followed_after_a_refresh(rules: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "y.json").write_text("[]")
    (rules / "link.json").symlink_to(tmp_path / "a" / "y.json")
    with watching(rules) as watched:
        (rules / "new").symlink_to(tmp_path / "b" / "y.json")
        (rules / "new").rename(rules / "link.json")
        assert watched.is_up_to_date()
        watched.watcher.refresh()
        (tmp_path / "b" / "y.json").write_text("[ ]")
        assert watched.is_up_to_date()
        # What is no longer linked is no longer watched; that it goes away harms nothing.
        shutil.rmtree(tmp_path / "a")
        watched.watcher.refresh()


def test_links_in_a_circle_harm_nothing(rules: Path) -> None:
    (rules / "circle.json").symlink_to("circle.json")
    (rules / "up").symlink_to("..")
    with watching(rules) as watched:
        (rules / "x.json").write_text("[ ]")
        assert watched.is_up_to_date()


def test_a_replaced_directory_is_noticed_and_after_a_refresh_watched(rules: Path) -> None:
    new = rules.with_name("new")
    new.mkdir()
    (new / "x.json").write_text("[  ]")
    with watching(rules) as watched:
        rules.rename(rules.with_name("old"))
        new.rename(rules)
        assert watched.is_up_to_date()
        watched.watcher.refresh()
        for text in ("[]", "[ ]"):
            (rules / "x.json").write_text(text)
            assert watched.is_up_to_date()


def test_a_directory_deleted_and_made_again_is_noticed_and_after_a_refresh_watched(rules: Path) -> None:
    with watching(rules) as watched:
        shutil.rmtree(rules)
        assert watched.is_up_to_date()
        watched.watcher.refresh()
        rules.mkdir()
        assert watched.is_up_to_date()
        watched.watcher.refresh()
        for text in ("[]", "[ ]"):
            (rules / "x.json").write_text(text)
            assert watched.is_up_to_date()


def test_a_directory_that_is_a_swapped_link_is_noticed(rules: Path) -> None:
    for name in ("a", "b"):
        rules.with_name(name).mkdir()
    (rules.with_name("b") / "x.json").write_text("[]")
    link = rules.with_name("link")
    link.symlink_to("a")
    with watching(link) as watched:
        link.with_name("next").symlink_to("b")
        link.with_name("next").rename(link)
        assert watched.is_up_to_date()
        watched.watcher.refresh()
        for text in ("[]", "[ ]"):
            (link / "x.json").write_text(text)
            assert watched.is_up_to_date()


def test_a_directory_that_is_made_later_is_noticed(tmp_path: Path) -> None:
    directory = tmp_path / "later"
    with watching(directory) as watched:
        directory.mkdir()
        assert watched.is_up_to_date()
        watched.watcher.refresh()
        (directory / "x.json").write_text("[]")
        assert watched.is_up_to_date()


def test_a_relative_directory_is_watched(rules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rules.parent)
    with watching(Path(rules.name)) as watched:
        (rules / "x.json").write_text("[ ]")
        assert watched.is_up_to_date()


def test_a_missing_parent_harms_nothing(tmp_path: Path) -> None:
    with watching(tmp_path / "no" / "such" / "rules") as watched:
        watched.watcher.refresh()


def test_a_refresh_without_changes_loses_nothing(rules: Path) -> None:
    with watching(rules) as watched:
        watched.watcher.refresh()
        watched.watcher.refresh()
        (rules / "x.json").write_text("[ ]")
        assert watched.is_up_to_date()


class Events:
    """Which events arrived, and which of them were told about."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._arrived = threading.Condition()
        self._told = 0
        self._paths: list[tuple[str, bool]] = []
        handle = watch._Handler.on_any_event

        def record(handler: watch._Handler, event: FileSystemEvent) -> None:
            with self._arrived:
                before = self._told
                handle(handler, event)
                self._paths.append((str(event.src_path), self._told > before))
                self._arrived.notify_all()

        monkeypatch.setattr(watch._Handler, "on_any_event", record)

    def tell(self) -> None:
        self._told += 1

    def told_about_before(self, last: Path) -> set[str]:
        """Return the paths told about until an event about *last*, for which this waits."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: any(path == str(last) for path, _ in self._paths), PATIENCE)
            end = next(i for i, (path, _) in enumerate(self._paths) if path == str(last))
            return {path for path, told in self._paths[:end] if told}


def test_reading_is_no_change(rules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every look at the files would ask for the next one."""
    (rules / "sub").mkdir()
    (rules / "sub" / "y.json").write_text("[]")
    events = Events(monkeypatch)
    watcher = RuleWatcher(rules, events.tell)
    watcher.start()
    try:
        load_rules(rules, strict_modes=False)
        stamp_files(rules)
        watcher.refresh()
        (rules / "written").touch()
        assert events.told_about_before(rules / "written") == set()
    finally:
        watcher.stop()


def test_what_else_happens_beside_the_directory_is_not_told(rules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = Events(monkeypatch)
    watcher = RuleWatcher(rules, events.tell)
    watcher.start()
    try:
        (rules.parent / "passwd").write_text("x")
        (rules.parent / "rules.bak").mkdir()
        (rules.parent / "passwd").rename(rules.parent / "passwd-")
        (rules.parent / "last").touch()
        assert events.told_about_before(rules.parent / "last") == set()
    finally:
        watcher.stop()


def test_stopping_ends_all_threads(rules: Path) -> None:
    before = set(threading.enumerate())
    with watching(rules):
        started = set(threading.enumerate()) - before
        assert started
    for thread in started:
        thread.join(PATIENCE)
        assert not thread.is_alive()
