"""A disk that can lose its power: it records what a store does to its files, and makes what a crash would leave."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw
import pytest

_VFS: Final = "recorded"
_SECTOR: Final = 512


class Event(NamedTuple):
    """One thing that was done: to the bytes of ``file``, or to the name ``path``."""

    what: str
    path: str
    offset: int = 0
    data: bytes = b""


class Disk:
    """Everything that was done to the files below a folder, in order; ``mark`` puts a note in between."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self._lock = threading.Lock()

    def add(self, what: str, path: str | os.PathLike[str], offset: int = 0, data: bytes = b"") -> None:
        absolute = os.path.abspath(path)
        if absolute == str(self.folder) or absolute.startswith(f"{self.folder}/"):
            with self._lock:
                self.events.append(Event(what, os.path.relpath(absolute, self.folder), offset, data))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what SQLite and the file functions of ``os`` do."""
        before = apsw.vfs_names()[0]
        vfs = _Vfs(self, before)
        apsw.set_default_vfs(_VFS)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("link", "rename", "mkdir", "unlink", "write", "fsync"):
                patch.setattr(os, name, self._recorded(name, getattr(os, name)))
            try:
                yield
            finally:
                apsw.set_default_vfs(before)
                vfs.unregister()

    def _recorded(self, name: str, function: Any) -> Any:
        def fsync(descriptor: int) -> None:
            function(descriptor)
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if os.path.isdir(path):
                self.add("sync folder", path)
            else:
                # A file is written once, before it is synced: what it holds by then is all that it will.
                self.add("whole", path, data=Path(path).read_bytes())

        def write(descriptor: int, data: bytes) -> int:
            written = function(descriptor, data)
            path, end = os.readlink(f"/proc/self/fd/{descriptor}"), os.lseek(descriptor, 0, os.SEEK_CUR)
            self.add("write", path, end - written, data[:written])
            return int(written)

        def two(source: Any, target: Any, **options: Any) -> None:
            function(source, target, **options)
            self.add("link", target, data=os.path.relpath(source, self.folder).encode())
            if name == "rename":
                self.add("unlink", source)

        def one(path: Any, *arguments: Any, **options: Any) -> None:
            function(path, *arguments, **options)
            self.add(name, path)

        return {"fsync": fsync, "write": write, "link": two, "rename": two}.get(name, one)


class _Vfs(apsw.VFS):
    def __init__(self, disk: Disk, base: str) -> None:
        super().__init__(_VFS, base)
        self._disk = disk
        self._base = base

    def xOpen(self, name: Any, flags: list[int]) -> Any:  # noqa: N802
        return _File(self._disk, self._base, name, flags)

    def xDelete(self, name: str, sync: bool) -> None:  # noqa: N802
        super().xDelete(name, sync)
        self._disk.add("unlink", name)
        if sync:
            self._disk.add("sync folder", os.path.dirname(name))


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, base: str, name: Any, flags: list[int]) -> None:
        super().__init__(base, name, flags)
        self._disk = disk
        self._path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        self._syncs_folder = bool(flags[0] & apsw.SQLITE_OPEN_WAL)
        disk.add("create", self._path)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        super().xWrite(data, offset)
        self._disk.add("write", self._path, offset, bytes(data))

    def xTruncate(self, size: int) -> None:  # noqa: N802
        super().xTruncate(size)
        self._disk.add("truncate", self._path, size)

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        self._disk.add("sync", self._path)
        if self._syncs_folder:
            # With the first sync of a log that SQLite made, and no other.
            self._disk.add("sync folder", os.path.dirname(self._path))
            self._syncs_folder = False


class Crash:
    """Replays the events of a disk; at each of them the power may go.

    What was synced is there. Of what was not, each sector and each name may be there or not, as ``chance`` says.
    """

    def __init__(self) -> None:
        self._files: dict[str, _Content] = {}
        """What has a name as far as running processes see; a new file under an old name is another one."""
        self._names: dict[str, _Content | None] = {}
        """What is sure to have a name; None is a folder."""
        self._unsure: list[tuple[str, _Content | None, bool]] = []
        """Names that were given, or with False taken away, since their folder was synced."""

    def replay(self, event: Event) -> None:
        path, file = event.path, self._files.get(event.path)
        match event.what:
            case "create" | "whole":
                if file is None:
                    file = self._files[path] = _Content()
                    self._unsure.append((path, file, True))
                file.synced[:] = event.data or file.synced
            case "write" | "truncate" if file is not None:
                file.unsynced.append(event)
            case "sync" if file is not None:
                for one in file.unsynced:
                    file.apply(one)
                file.unsynced.clear()
            case "link":
                # A source that was never synced has bytes that nobody vouches for.
                self._files[path] = file = self._files.get(event.data.decode()) or _Content()
                self._unsure.append((path, file, True))
            case "mkdir":
                self._unsure.append((path, None, True))
            case "unlink":
                self._unsure.append((path, self._files.pop(path, None), False))
            case "sync folder":
                here = [one for one in self._unsure if os.path.dirname(one[0]) == path.removeprefix(".")]
                self._unsure = [one for one in self._unsure if os.path.dirname(one[0]) != path.removeprefix(".")]
                for one in here:
                    _name(self._names, *one)

    def leave(self, folder: Path, chance: random.Random) -> None:
        """Make the files that a crash at this moment leaves."""
        names = dict(self._names)
        for one in self._unsure:
            if chance.random() < 0.5:
                _name(names, *one)
        for path, file in sorted(names.items()):
            target = folder / path
            if not target.parent.is_dir():
                continue  # its folder was lost
            if file is None:
                target.mkdir()
            else:
                target.write_bytes(file.left(chance))


class _Content:
    """The bytes of a file, and what was done to it since they were synced."""

    def __init__(self) -> None:
        self.synced = bytearray()
        self.unsynced: list[Event] = []

    def left(self, chance: random.Random) -> bytes:
        """Return what a crash leaves of them."""
        rest = _Content()
        rest.synced[:] = self.synced
        for event in self.unsynced:
            for start in range(0, max(1, len(event.data)), _SECTOR):
                if chance.random() < 0.5:
                    data = event.data[start : start + _SECTOR]
                    rest.apply(event._replace(offset=event.offset + start, data=data))
        return bytes(rest.synced)

    def apply(self, event: Event) -> None:
        if event.what == "truncate":
            del self.synced[event.offset :]
            return
        self.synced.extend(bytes(max(0, event.offset - len(self.synced))))
        self.synced[event.offset : event.offset + len(event.data)] = event.data


def _name(names: dict[str, _Content | None], path: str, file: _Content | None, given: bool) -> None:
    if given:
        names[path] = file
    else:
        names.pop(path, None)
