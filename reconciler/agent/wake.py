"""What wakes a loop before its time: etcd's watches, a webhook, a signal, and a local repository's changes by `watchfiles`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

log = logging.getLogger(__name__)


class Wake:
    """A bell that anybody may ring and one loop waits for. A hundred rings before it looks are one."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def ring(self) -> None:
        self._event.set()

    def wait(self, seconds: float | None) -> bool:
        """Wait until it is rung, or for `seconds`; whether it was rung."""
        rung = self._event.wait(seconds)
        self._event.clear()
        return rung


_STEP, SELDOM = 100, 500
"""Milliseconds between two looks of watchfiles at what inotify has told it: each is a little work, and there are many in an idle year.
For what somebody waits for, and for what changes once in a while.
"""


def watch_paths(
    paths: Sequence[Path],
    ring: Callable[[], None],
    stop: threading.Event,
    *,
    recursive: bool = True,
    step: int = _STEP,
) -> threading.Thread:
    """Call `ring` whenever something in (or, if `recursive`, below) one of `paths`, directories, changes, until `stop` is set:
    within twice `step` (milliseconds), or three times while the changes go on.
    """

    def watch() -> None:
        # Imported here: only an agent that follows something local needs it.
        from watchfiles import watch as changes

        try:
            for _ in changes(
                *paths,
                watch_filter=None,
                stop_event=stop,
                debounce=2 * step,
                step=step,
                raise_interrupt=False,
                recursive=recursive,
            ):
                ring()
        except (OSError, RuntimeError) as error:
            log.warning(
                "cannot watch %s (%s): changes are found at the next poll", ", ".join(map(str, paths)), error
            )

    thread = threading.Thread(target=watch, name="watch-paths", daemon=True)
    thread.start()
    return thread


def local_paths(repo: str) -> list[Path]:
    """The directories in which a push or commit to the local repository (or a change of the plain directory) `repo` shows.

    Empty for a remote one, which has to be polled.
    """
    root = Path(repo)
    if "://" in repo or not root.is_dir():
        root = Path(repo.removeprefix("file://"))
        if not repo.startswith("file://") or not root.is_dir():
            return []
    git = root / ".git"
    if git.is_file():
        git = (root / git.read_text(errors="replace").removeprefix("gitdir:").strip()).resolve()
    for directory in (git, root):
        if (directory / "HEAD").is_file() and (directory / "refs").is_dir():
            # The directory itself holds HEAD and packed-refs; a push to a bare repository writes below refs.
            return [directory / "refs"]
    return [root]
