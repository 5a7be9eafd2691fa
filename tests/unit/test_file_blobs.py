"""Blobs in a folder that goes away, or cannot be written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from agent_memory import disk
from agent_memory.errors import IntegrityError, UnavailableError
from agent_memory.storage import blobs
from agent_memory.storage.blobs import FileBlobs

ID = "0198c0de-0000-7000-8000-0000000000ab"


def test_a_folder_that_went_away_is_missed_and_not_made_anew(tmp_path: Path) -> None:
    folder, away = tmp_path / "blobs", tmp_path / "away"
    store = FileBlobs(folder)
    store.ping()
    store.put(ID, 0, memoryview(b"value"))
    store.ping()
    # As when what was mounted there no longer is.
    folder.rename(away)
    for call in (store.ping, lambda: store.put(ID, 1, memoryview(b"value"))):
        with pytest.raises(UnavailableError, match="the blob folder is not there any more"):
            call()
    assert not folder.exists()
    away.rename(folder)
    store.ping()
    store.read_into(ID, 0, 0, memoryview(bytearray(5)))
    assert [path.name for path in tmp_path.iterdir()] == ["blobs"]
    assert [path.name for path in folder.iterdir()] == ["ab"]


@pytest.mark.parametrize("outside", ["{}/outside", "../outside", "x/../../../outside", ".."])
def test_a_name_in_a_catalog_of_somebody_else_leads_to_no_file_outside(tmp_path: Path, outside: str) -> None:
    blob_id = outside.format(tmp_path)
    theirs = ["outside.0", "...0"]
    for name in theirs:
        (tmp_path / name).write_bytes(b"other")
    store = FileBlobs(tmp_path / "blobs")
    for call in (
        lambda: store.read_into(blob_id, 0, 0, memoryview(bytearray(5))),
        lambda: store.digest(blob_id, [5]),
        lambda: store.put(blob_id, 1, memoryview(b"value")),
    ):
        with pytest.raises(IntegrityError, match="no store made"):
            call()
    store.put(ID, 0, memoryview(b"value"))
    store.delete([(blob_id, 1), (ID, 1)])
    assert list(store.objects()) == []
    (tmp_path / "blobs" / ID[-2:]).rmdir()
    (tmp_path / "blobs").rmdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(theirs)


def test_a_folder_is_ready_when_it_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileBlobs(tmp_path / "absent" / "blobs")
    with pytest.raises(UnavailableError, match="place of the blob folder"):
        store.ping()

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk, "open", full, raising=False)
    with pytest.raises(UnavailableError) as caught:
        FileBlobs(tmp_path).ping()
    assert caught.value.code == "disk_full"


def test_a_write_says_that_there_is_no_place_for_the_folder(tmp_path: Path) -> None:
    store = FileBlobs(tmp_path / "absent" / "blobs")
    with pytest.raises(UnavailableError, match="place of the blob folder") as caught:
        store.put(ID, 0, memoryview(b"value"))
    assert caught.value.code == "disk_failed"


def test_a_folder_may_stand_in_one_that_is_closed_to_its_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, opened = tmp_path / "blobs", os.open
    folder.mkdir()

    def closed(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path) == tmp_path:
            raise PermissionError(errno.EACCES, "closed")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", closed)
    FileBlobs(folder).put(ID, 0, memoryview(b"value"))
    assert FileBlobs(folder).path(ID, 0).read_bytes() == b"value"


def test_a_folder_whose_name_does_not_reach_the_disk_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "blobs"
    (folder / ID[-2:]).mkdir(parents=True)

    def fail(path: Path) -> None:
        if path == tmp_path:
            raise OSError(errno.EIO, "the disk failed")

    store = FileBlobs(folder)
    monkeypatch.setattr(blobs, "sync_folder", fail)
    for _ in range(2):
        with pytest.raises(UnavailableError):
            store.put(ID, 0, memoryview(b"value"))


def test_what_others_left_in_the_folder_ends_no_listing(tmp_path: Path) -> None:
    store = FileBlobs(tmp_path)
    store.put(ID, 0, memoryview(b"value"))
    (tmp_path / ID[-2:] / "x.\N{SUPERSCRIPT TWO}").touch()
    assert {(found.blob_id, found.number) for found in store.objects()} == {(ID, 0), ("x.\N{SUPERSCRIPT TWO}", -1)}


def test_a_listing_that_fails_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "ab").touch()
    with pytest.raises(UnavailableError, match="blob folder"):
        list(FileBlobs(tmp_path).objects())


def test_two_threads_may_put_the_first_chunks_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileBlobs(tmp_path / "blobs")
    look = os.path.isdir

    def overtaken(path: Any) -> bool:
        there = look(path)
        monkeypatch.setattr(os.path, "isdir", look)
        store.put(ID, 1, memoryview(b"second"))
        return there

    monkeypatch.setattr(os.path, "isdir", overtaken)
    store.put(ID, 0, memoryview(b"first"))
    assert [store.path(ID, index).read_bytes() for index in range(2)] == [b"first", b"second"]


def test_deleting_many_blobs_reads_their_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, read = FileBlobs(tmp_path / "blobs", durable=False), list[Path]()
    ids = [f"0198c0de-0000-7000-8000-{number:010x}ab" for number in range(20)]
    for one in ids:
        store.put(one, 0, memoryview(b"value"))
    (tmp_path / "blobs" / "ab" / f"{ids[0]}.1.0123.part").touch()
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: read.append(folder) or listdir(folder))
    store.delete((one, 1) for one in ids[:15])
    assert read == [tmp_path / "blobs" / "ab"], "with many values it takes the longest"
    assert sorted(listdir(tmp_path / "blobs" / "ab")) == [f"{one}.0" for one in ids[15:]]
    store.delete([("0198c0de-0000-7000-8000-0000000000cd", 1)])
