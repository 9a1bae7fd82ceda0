"""What an interruption leaves: the result as it was before, and nothing beside it.

A result is written in a hidden folder beside its place, and renamed when it is complete. The
folder holds a file that its writer keeps locked. The kernel drops the lock of a killed process, so
that the next writer of the same result can tell what is abandoned from what is at work.
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
except ImportError:  # Windows: abandoned folders stay there
    fcntl = None  # type: ignore[assignment]

_LOCK = "writer.lock"
"""In a hidden folder: locked while its writer lives, with the name of the result in it."""

_BEFORE = "before"
"""In a hidden folder: what stood in the place of the result."""


class Interrupted(KeyboardInterrupt):
    """A signal that ends the process; ``args`` has its number."""


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise `Interrupted`, as Ctrl-C raises KeyboardInterrupt.

    Handlers that somebody else has set stay, and other threads than the main one change nothing.
    """

    def interrupt(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)  # once: a second one would cut the tidying short
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
    """Where to write ``target``: beside it, to be put in its place when all is done.

    Whatever fails leaves ``target`` as it was, and nothing else; a killed process leaves a hidden
    folder, out of which the next call puts back what it had taken away.

    Parameters
    ----------
    target, source : Path
        The result, and what it is made from.
    overwrite : bool
        Whether to replace a target that is there.

    Raises
    ------
    UnsupportedArrayError
        The target is or holds the source or the working folder, or exists and may not be replaced.
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
    """A folder beside ``target`` to write it in; removed at the end, whatever happens.

    Folders that killed processes left for the same target are removed first. What one of them had
    moved out of the target's place goes back there.
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
            (folder / f"{_LOCK}.new").rename(folder / _LOCK)  # never seen without its lock
            yield folder
        finally:
            _remove(folder, target)


def _taken(lock: IO) -> bool:
    """Lock an open file; False where another process has it, or the file system has no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, AttributeError):
        return False
    return True


def _remove(folder: Path, target: Path) -> None:
    """Put back what stood in the target's place, then remove the folder, its lock at the end."""
    before = folder / _BEFORE
    if os.path.lexists(before) and not os.path.lexists(target):
        before.rename(target)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _LOCK:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
