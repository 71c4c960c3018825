"""Room for what is fetched together, on small file systems of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from reconciler.errors import HostError
from reconciler.host.room import Room
from tests.disks import small_disk

MB = 1_000_000


def test_each_alone_would_fit_and_together_they_do_not(tmp_path: Path) -> None:
    """The store and the downloads on two disks, as where the state directory has one of its own."""
    with small_disk(tmp_path / "store", "10m") as store, small_disk(tmp_path / "state", "5m") as state:
        room = Room()

        def fetched(what: str, size: int) -> None:
            with room.taken(what, stays=(store / "graph", 3 * size), passes=(state / "pull", size)):
                (store / what).write_bytes(bytes(3 * size))
                (state / what).write_bytes(bytes(size))
            (state / what).unlink()

        fetched("a", 2 * MB)
        # What of `a` lies there already is not counted a second time, and its download is gone.
        says = r"put c and 2 more into .*: together they take 12\.0 MB, and 10\.5 MB were free"
        with (
            room.taken("b", stays=(store, 3 * MB), passes=(state, MB)),
            pytest.raises(HostError, match=says),
        ):
            fetched("c", MB)
        room.begin()
        fetched("c", MB)
        with pytest.raises(HostError, match=r"put d into .*store.*: it takes 30\.0 MB and 1\.5 MB are free"):
            fetched("d", 10 * MB)


def test_downloads_side_by_side_count_together_and_what_failed_counts_no_more(tmp_path: Path) -> None:
    with small_disk(tmp_path / "state", "5m") as state:
        room = Room()

        def fetch(what: str, stays: Path, size: int, passes: int, error: Exception | None = None) -> None:
            with room.taken(what, stays=(stays, size), passes=(state, passes)):
                if error is not None:
                    raise error

        with (
            room.taken("a", stays=(tmp_path, MB), passes=(state, 3 * MB)),
            pytest.raises(HostError, match="the download of b and 1 more"),
        ):
            fetch("b", tmp_path, MB, 3 * MB)
        with pytest.raises(OSError, match="gone"):
            fetch("c", state, 4 * MB, MB, OSError("the network is gone"))
        fetch("b", state, 4 * MB, MB)
