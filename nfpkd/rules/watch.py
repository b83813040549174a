"""Noticing that rule files changed: alone imports watchdog.

An editor's save may be a write, a rename or a delete and a create; a mounted
config map's is a swapped link.  So no event is believed to say what happened:
any of them means "look again".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import ObservedWatch

from nfpkd.rules.loader import find_rule_files

_READS = frozenset({"opened", "closed_no_write"})


class RuleWatcher:
    """Calls *notify*, from a thread of its own, when something happened to the rule files below *directory*.

    Watched are the directory with its sub-directories, the places that links in
    it lead to, and its parent, where the directory itself may be replaced.
    Call `refresh` after each change: links may lead elsewhere by then.
    """

    def __init__(self, directory: Path, notify: Callable[[], object]) -> None:
        self._directory = directory
        self._notify = notify
        self._watches: dict[tuple[Path, int, int], ObservedWatch] = {}
        self._observer = Observer()

    def start(self) -> None:
        self._observer.start()
        self.refresh()

    def stop(self) -> None:
        self._observer.stop()
        self._observer.join()

    def refresh(self) -> None:
        """Watch what should be watched now; a directory that was replaced is watched anew."""
        wanted = {}
        for path, recursive in self._places().items():
            # What has just vanished is noticed by its parent's watch.
            with contextlib.suppress(OSError):
                info = path.stat()
                wanted[(path, info.st_dev, info.st_ino)] = recursive
        for place in self._watches.keys() - wanted.keys():
            # watchdog raises KeyError for a watch that ended by itself.
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(self._watches[place])
            del self._watches[place]
        for place in wanted.keys() - self._watches.keys():
            with contextlib.suppress(OSError):
                handler = _Handler(self._directory, place[0], self._notify)
                self._watches[place] = self._observer.schedule(handler, str(place[0]), recursive=wanted[place])

    def _places(self) -> dict[Path, bool]:
        """Return the directories to watch, and whether with their sub-directories."""
        places = {self._directory.absolute().parent: False}
        for file in find_rule_files(self._directory, [], strict_modes=False):
            with contextlib.suppress(OSError, RuntimeError):
                for folder in (file.parent.resolve(), file.resolve().parent):
                    if not folder.is_relative_to(self._directory.resolve()):
                        places[folder] = False
        places[self._directory.absolute()] = True
        return places


class _Handler(FileSystemEventHandler):
    def __init__(self, directory: Path, place: Path, notify: Callable[[], object]) -> None:
        # The parent is often a busy place; there only the directory itself counts.
        self._only = str(directory.absolute()) if place == directory.absolute().parent else None
        self._notify = notify

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in _READS:
            return
        if self._only is None or self._only in (event.src_path, event.dest_path):
            self._notify()
