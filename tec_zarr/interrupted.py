"""Results that are written completely or not at all, even if the process is interrupted.

A result is written into a hidden folder beside its final path. When it is complete, it is renamed
to that path. An interruption leaves the earlier result in place and no partial files.

The writer keeps a lock on a file in the hidden folder. The kernel releases the lock when a process
is killed. So the next writer of the same result can tell an abandoned folder from one in use.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tec_zarr.errors import UnsupportedArrayError

try:
    import fcntl
except ImportError:  # Windows has no fcntl: there, abandoned folders are not removed
    fcntl = None  # type: ignore[assignment]

_LOCK = "writer.lock"
"""File in a hidden folder. It holds the name of the result and is locked while its writer runs."""

_BEFORE = "before"
"""Name in a hidden folder of the earlier result, moved there while the new one replaces it."""


class Interrupted(KeyboardInterrupt):
    """Raised when a signal asks the process to end; ``args`` holds the number of the signal."""


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise `Interrupted`, as Ctrl-C raises KeyboardInterrupt.

    Handlers that other code has set stay in place. Outside the main thread, nothing changes:
    Python allows only the main thread to set handlers.
    """

    def interrupt(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second signal would interrupt the clean-up
        raise Interrupted(number)

    ends = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    mine = threading.current_thread() is threading.main_thread()
    taken = [n for n in ends if mine and signal.getsignal(n) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def replaced(target: Path, source: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a path to write the result to, and move it to ``target`` when the block ends.

    The path is in a hidden folder beside ``target``. If the block raises, ``target`` stays as it
    was and the folder is removed. A killed process leaves the folder behind; the next call for the
    same target removes it, and restores the earlier result if that was moved away.

    Parameters
    ----------
    target, source : Path
        The final path of the result, and the path of its input.
    overwrite : bool
        Whether an existing target may be replaced.

    Raises
    ------
    UnsupportedArrayError
        The target is the source or the working folder, or contains one of them; or it exists and
        may not be replaced.
    """
    shown, target, source = target, target.resolve(), source.resolve()
    if target in (source, *source.parents):
        raise UnsupportedArrayError(
            f"{shown} is the source, or holds it: choose another name for the result"
        )
    if target in (Path.cwd(), *Path.cwd().parents):
        raise UnsupportedArrayError(f"{shown} holds this process: choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    with hidden_folder(target) as folder:
        if target.exists() and not overwrite:
            raise UnsupportedArrayError(f"{shown} exists: choose another name or pass --overwrite")
        written = folder / target.name
        yield written
        if target.exists():
            target.rename(folder / _BEFORE)
        written.rename(target)


@contextlib.contextmanager
def hidden_folder(target: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside ``target``, and remove it at the end, also after an error.

    Folders that killed processes left for the same target are removed first. If one of them holds
    the earlier result, this is moved back to ``target``.
    """
    for abandoned in target.parent.glob(f".{glob.escape(target.name)}-*/{_LOCK}"):
        with contextlib.suppress(OSError), abandoned.open() as lock:
            if _taken(lock) and (name := lock.read()):
                _remove(abandoned.parent, abandoned.parent.with_name(name))
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    with (folder / f"{_LOCK}.new").open("w") as lock:
        try:
            lock.write(target.name)
            lock.flush()
            _taken(lock)
            # Renamed only now, so that no other process sees the file before it is locked.
            (folder / f"{_LOCK}.new").rename(folder / _LOCK)
            yield folder
        finally:
            _remove(folder, target)


def _taken(lock: IO) -> bool:
    """Lock an open file.

    Returns False if another process holds the lock, or if there are no locks on this system.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, AttributeError):
        return False
    return True


def _remove(folder: Path, target: Path) -> None:
    """Restore the earlier result if ``target`` is missing; remove the folder, its lock last."""
    before = folder / _BEFORE
    if os.path.lexists(before) and not os.path.lexists(target):
        before.rename(target)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _LOCK:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
