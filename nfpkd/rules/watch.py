"""Noticing that rule files changed: alone imports watchdog.

An editor's save may be a write, a rename or a delete and a create; a mounted
config map's is a swapped link.  So no event is believed to say what happened:
any of them means "look again".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

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
        self._watches: dict[_Place, ObservedWatch] = {}
        self._observer = Observer()

    def start(self) -> None:
        self._observer.start()
        self.refresh()

    def stop(self) -> None:
        self._observer.stop()
        self._observer.join()

    def refresh(self) -> None:
        """Watch what should be watched now; a directory that was replaced is watched anew."""
        home = _real(self._directory)
        wanted = set()
        for folder, names in self._places(home).items():
            # What has just vanished is noticed by its parent's watch.
            with contextlib.suppress(OSError):
                info = folder.stat()
                wanted.add(_Place(folder, names, info.st_dev, info.st_ino))
        for place in self._watches.keys() - wanted:
            # watchdog raises KeyError for a watch that ended by itself.
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(self._watches[place])
            del self._watches[place]
        for place in wanted - self._watches.keys():
            with contextlib.suppress(OSError):
                handler = _Handler(place.names, self._notify)
                recursive = place.folder == home
                self._watches[place] = self._observer.schedule(handler, str(place.folder), recursive=recursive)

    def _places(self, home: Path) -> dict[Path, frozenset[str] | None]:
        """Return the directories to watch, without links in their paths, because watchdog does not follow any.

        Of each is said which paths in it count; None stands for all.
        """
        folders = [self._directory]
        files = find_rule_files(self._directory, [], strict_modes=False, folders=folders)
        links = [file for file in files if file.is_symlink()]
        entries = {link for path in (*folders, *links) for link in _find_links(path)}
        entries |= {_real(link) for link in links}
        entries.add(_real(self._directory.absolute().parent) / self._directory.name)
        places: dict[Path, frozenset[str] | None] = {}
        for entry in entries:
            places[entry.parent] = (places.get(entry.parent) or frozenset()) | {str(entry)}
        places |= dict.fromkeys(map(_real, folders), None)
        return {path: names for path, names in places.items() if path == home or not path.is_relative_to(home)}


class _Place(NamedTuple):
    folder: Path
    names: frozenset[str] | None
    device: int
    inode: int


def _real(path: Path) -> Path:
    """Resolve *path* also where Path.resolve raises: at links that lead in a circle."""
    return Path(os.path.realpath(path))


def _find_links(path: Path) -> Iterator[Path]:
    """Yield each link that the kernel follows on the way to *path*, by a path without other links."""
    rest = list(reversed(path.absolute().parts))
    place = Path("/")
    # As the kernel counts, in path_resolution(7).
    links_left = 40
    while rest and links_left:
        part = rest.pop()
        if part == "..":
            place = place.parent
            continue
        place = place / part
        if place.is_symlink():
            links_left -= 1
            yield place
            with contextlib.suppress(OSError):
                rest.extend(reversed(place.readlink().parts))
            place = place.parent


class _Handler(FileSystemEventHandler):
    def __init__(self, names: frozenset[str] | None, notify: Callable[[], object]) -> None:
        # The parent is often a busy place; there only the directory itself counts.
        self._names = names
        self._notify = notify

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in _READS:
            return
        # watchdog 2 gives it to moves alone.
        target = getattr(event, "dest_path", "")
        if self._names is None or not self._names.isdisjoint((event.src_path, target)):
            self._notify()
