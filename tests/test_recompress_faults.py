"""Whatever breaks during a recompression: nothing lost, all reported, and the next run goes on.

"Equal" means equal files, byte for byte, to those of a run that nothing interrupted.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import recompress_worker
import zarr
from recompress_worker import DEADLY, FailingStore, FullStore, Models
from test_recompress import make_archive, tree, write_archive
from zarr.storage import LocalStore

from tec_zarr.errors import RecompressError
from tec_zarr.recompression import lock, run
from tec_zarr.recompression.lock import Lock
from tec_zarr.recompression.manifest import Manifest
from tec_zarr.recompression.progress import RecompressReport
from tec_zarr.recompression.run import recompress
from tec_zarr.stores.objects import write

SETTINGS = {"model": DEADLY, "quality": 6.0}
CODED = 3
"""Regions of reflectance; the second holds nothing but nodata, and needs no model."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "v2.zarr"
    write_archive(path)
    return path


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    recompress_worker.register()
    path = tmp_path_factory.mktemp("undisturbed") / "tec.zarr"
    assert recompress(source, path, **SETTINGS).complete
    return tree(path)


@pytest.fixture(autouse=True)
def _well_behaved_model():
    recompress_worker.register()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "tec.zarr"


def finished_files(target: Path) -> dict[Path, int]:
    """Data files of finished regions, with the time of their last change."""
    finished = Manifest(LocalStore(target)).finished().values()
    files = [target / key for done in finished for key in done.objects]
    return {file: file.stat().st_mtime_ns for file in files}


def assert_unreadable(target) -> None:
    with pytest.raises((FileNotFoundError, zarr.errors.NodeNotFoundError)):
        zarr.open(target, mode="r")
    for name in ("reflectance", "scl", "time"):
        with pytest.raises((FileNotFoundError, zarr.errors.NodeNotFoundError)):
            zarr.open_array(target / name, mode="r")


def assert_resumes(source, target, undisturbed) -> RecompressReport:
    """The state between the runs is unreadable, kept, and completed to the same bytes."""
    assert_unreadable(target)
    before = finished_files(target)
    report = recompress(source, target, **SETTINGS)
    assert report.complete
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert tree(target) == undisturbed
    return report


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two worker processes, one of which dies when the flag file exists."""
    distributed = pytest.importorskip("distributed")
    flag = tmp_path_factory.mktemp("flag") / "kill"
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit="1GiB"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.register_plugin(Models(str(flag)))
        yield client, flag


def test_a_worker_killed_in_its_task(cluster, source, target, undisturbed):
    client, flag = cluster
    flag.touch()
    before = set(client.run(os.getpid).values())
    report = recompress(source, target, client=client, **SETTINGS)
    assert not flag.exists()
    client.wait_for_workers(2)
    assert set(client.run(os.getpid).values()) != before
    assert report.complete
    assert not report.failures
    assert tree(target) == undisturbed


def test_relative_paths_on_workers_that_run_elsewhere(
    cluster, source, target, undisturbed, monkeypatch
):
    client, _ = cluster
    monkeypatch.chdir(source.parent)
    assert recompress(source.name, target, client=client, retries=0, **SETTINGS).complete
    assert tree(target) == undisturbed


def test_storage_that_workers_do_not_share_is_refused(cluster, source, monkeypatch, request):
    """What each process writes to memory:// is there for itself."""
    client, _ = cluster
    url = f"memory://{request.node.name}.zarr"
    with pytest.raises(RecompressError, match=r"2 of 2 workers \(tcp://.*cannot see what was writ"):
        recompress(source, url, client=client, **SETTINGS)
    monkeypatch.setattr(run, "_check_shared", lambda *_: None)  # a worker that came later
    report = recompress(source, url, client=client, retries=0, **SETTINGS)
    assert len(report.failures) == report.regions
    assert "does not share the storage" in str(report.failures[0])
    with pytest.raises(FileNotFoundError):
        zarr.open(url, mode="r")
    assert recompress(source, url, **SETTINGS).complete


def test_failures_on_workers_are_collected(cluster, source, tmp_path, undisturbed):
    client, _ = cluster
    damaged = tmp_path / "source.zarr"
    shutil.copytree(source, damaged)
    chunk = damaged / "scl" / "2.0.0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2])
    report = recompress(damaged, tmp_path / "tec.zarr", client=client, retries=1, **SETTINGS)
    assert [failure.path for failure in report.failures] == ["scl"]
    assert report.finished == report.regions - 1
    chunk.write_bytes(whole)
    report = recompress(damaged, tmp_path / "tec.zarr", client=client, **SETTINGS)
    assert report.complete
    new, old = tree(tmp_path / "tec.zarr"), dict(undisturbed)
    del new["zarr.json"], old["zarr.json"]  # they name the source, which lies elsewhere
    assert new == old


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_a_client_killed_and_restarted(name, source, target, undisturbed, tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    command = [
        sys.executable, recompress_worker.__file__, "client", name, flag,
        "recompress", source, target, "--model", DEADLY, "--quality", "6",
    ]  # fmt: skip
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    first = subprocess.run(
        command, env={**os.environ, **path}, capture_output=True, text=True, check=False
    )
    expected = {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -signal.SIGKILL}[name]
    assert first.returncode == expected, first.stderr
    if name != "SIGKILL":
        assert "repeat the command to continue" in first.stderr
    report = assert_resumes(source, target, undisturbed)
    assert report.resumed
    if name == "SIGKILL":  # after another signal a busy machine may finish what was begun
        assert report.resumed < report.regions


def test_the_model_runs_once_for_each_region(source, target, undisturbed):
    def fail(calls):
        if calls == 2:
            raise MemoryError("the second chunk does not fit")

    recompress_worker.register(fail)
    report = recompress(source, target, retries=0, threads=1, **SETTINGS)
    (failure,) = map(str, report.failures)
    assert failure.startswith("reflectance[")
    assert failure.endswith(", 0:12, 0:40, 0:40]: MemoryError: the second chunk does not fit")
    assert_resumes(source, target, undisturbed)
    assert recompress_worker.Deadly.calls == CODED  # one, the one that failed, and that again


def test_a_retry_makes_up_for_a_passing_failure(source, target, undisturbed):
    def fail(calls):
        if calls == 1:
            raise TimeoutError

    recompress_worker.register(fail)
    report = recompress(source, target, retries=1, **SETTINGS)
    assert report.complete
    assert not report.failures
    assert tree(target) == undisturbed


@pytest.mark.parametrize("room", [0, 100, 2000, 40_000])
def test_a_full_disk_stops_the_run(room, source, target, undisturbed):
    store = FullStore(LocalStore(target), room)
    if room < 500:
        with pytest.raises(RecompressError, match=r"cannot be written .*No space left"):
            recompress(source, store, **SETTINGS)
    else:
        report = recompress(source, store, threads=1, **SETTINGS)
        assert not report.complete
        assert len(report.failures) == 1
        assert report.failures[0].fatal
        assert "No space left" in str(report.failures[0])
    assert_resumes(source, target, undisturbed)


@pytest.fixture
def tmpfs(tmp_path):
    """A real file system of 256 kB, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no permission to mount a tmpfs here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_file_system(tmpfs, source, undisturbed):
    report = recompress(source, tmpfs / "tec.zarr", **SETTINGS)
    assert not report.complete
    assert any("No space left" in str(failure) for failure in report.failures)
    assert_unreadable(tmpfs / "tec.zarr")
    subprocess.run(["mount", "-o", "remount,size=64M", tmpfs], check=True)
    assert_resumes(source, tmpfs / "tec.zarr", undisturbed)


def test_a_read_only_file_system(tmpfs, source):
    subprocess.run(["mount", "-o", "remount,ro", tmpfs], check=True)
    with pytest.raises(RecompressError, match=r"cannot be written .*Read-only file system"):
        recompress(source, tmpfs / "tec.zarr", **SETTINGS)


def test_a_read_only_store(source, target):
    target.mkdir()
    with pytest.raises(RecompressError, match=r"cannot be written .*read-only"):
        recompress(source, LocalStore(target, read_only=True), **SETTINGS)


def test_a_source_that_goes_away_is_not_taken_for_nodata(source, target, tmp_path):
    place, away = tmp_path / "mounted.zarr", tmp_path / "away.zarr"
    shutil.copytree(source, place)

    def vanish(calls):
        if place.exists():
            place.rename(away)

    recompress_worker.register(vanish)
    report = recompress(place, target, threads=1, retries=0, **SETTINGS)
    assert report.failures
    assert all("is gone" in str(failure) for failure in report.failures)
    recompress_worker.register()
    with pytest.raises(RecompressError, match="cannot be opened"):
        recompress(place, target, **SETTINGS)
    away.rename(place)
    before = finished_files(target)
    assert recompress(place, target, **SETTINGS).complete
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert (zarr.open(target)["scl"][:] == zarr.open(place)["scl"][:]).all()


def test_an_unreachable_server(target):
    pytest.importorskip("s3fs")
    options = {
        "anon": True, "client_kwargs": {"endpoint_url": "http://127.0.0.1:9"},
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }  # fmt: skip
    with pytest.raises(RecompressError, match=r"s3://bucket/a\.zarr cannot be opened"):
        recompress("s3://bucket/a.zarr", target, source_options=options, **SETTINGS)
    assert not target.exists()


@pytest.mark.parametrize("word", ["_tec/done", "reflectance/c", "_tec/config"])
def test_interrupted_in_a_write(word, source, target, undisturbed):
    """Also on a store whose writes are not atomic: a torn object is not a finished one."""
    store = FailingStore(LocalStore(target), word)
    if word == "_tec/config":
        with pytest.raises(RecompressError, match="cannot be written"):
            recompress(source, store, **SETTINGS)
    else:
        report = recompress(source, store, retries=0, **SETTINGS)
        assert not report.complete
        assert len(report.failures) == 1
    assert_resumes(source, target, undisturbed)


@pytest.mark.parametrize("document", ["scl/zarr.json", "zarr.json"])
def test_interrupted_when_it_becomes_visible(document, source, target, undisturbed):
    last = len(make_archive().variables) + 1
    store = FailingStore(LocalStore(target), document, 1 if "/" in document else last)
    with pytest.raises(RecompressError, match="all regions are finished"):
        recompress(source, store, **SETTINGS)
    before = finished_files(target)
    report = recompress(source, target, **SETTINGS)
    assert report.complete
    assert report.resumed == report.regions
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert tree(target) == undisturbed


def stopped_in_the_middle(source, target) -> None:
    def fail(calls):
        if calls == 2:
            raise KeyError("stop")

    recompress_worker.register(fail)
    assert not recompress(source, target, retries=0, **SETTINGS).complete
    recompress_worker.register()


@pytest.mark.parametrize("where", ["here", "gone", "elsewhere", "died elsewhere"])
def test_one_run_at_a_time(where, source, target, undisturbed, monkeypatch):
    """The second is told of the first; one that has died is not waited for."""
    store = LocalStore(target)
    if where == "here":
        seen = []

        def second(calls):
            with pytest.raises(RecompressError, match=r"another run is at work .* last seen \d+ s"):
                recompress(source, target, **SETTINGS)
            seen.append(calls)

        recompress_worker.register(second)
        assert recompress(source, target, threads=1, **SETTINGS).complete
        assert seen == [1, 2]
    else:
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        holder = Lock(store)
        holder._holder |= {"host": socket.gethostname() if where == "gone" else "other",
                           "process": child.pid}  # fmt: skip
        if where == "died elsewhere":
            monkeypatch.setattr(time, "time", lambda: 1e9)
        write(store, "_tec/lock.json", holder._content())
        monkeypatch.undo()
        if where == "elsewhere":
            with pytest.raises(RecompressError, match=r"on other, begun .* after 300 seconds"):
                recompress(source, target, **SETTINGS)
            assert list(tree(target)) == ["_tec/lock.json"]
            (target / "_tec/lock.json").unlink()
        recompress_worker.register()
        assert recompress(source, target, **SETTINGS).complete
    assert tree(target) == undisturbed


def test_a_run_that_lost_its_target_stops(source, target, undisturbed, monkeypatch):
    """It was not seen for long, and another run took over: that one publishes."""
    monkeypatch.setattr(lock, "RENEWED", 0.01)
    other = Lock(LocalStore(target))

    def take_over(calls):
        for _ in range(40):  # a renewal that is under way may write over it once
            write(LocalStore(target), "_tec/lock.json", other._content())
            time.sleep(0.02)

    recompress_worker.register(take_over)
    with pytest.raises(RecompressError, match="another run has taken over"):
        recompress(source, target, threads=1, **SETTINGS)
    assert_unreadable(target)
    (target / "_tec/lock.json").unlink()
    recompress_worker.register()
    report = assert_resumes(source, target, undisturbed)
    assert 0 < report.resumed < report.regions


def test_a_worker_that_outlives_its_run_leaves_no_record(source, target, undisturbed):
    store = LocalStore(target)
    stopped_in_the_middle(source, target)
    done = next(iter(Manifest(store).finished().values()))
    assert recompress(source, target, **SETTINGS).complete
    with pytest.raises(RecompressError, match=r"has no _tec/config\.json: another run has finish"):
        Manifest(store).mark(done)
    write(store, "_tec/done/0-0.json", b"left by something else")
    assert recompress(source, target, **SETTINGS).complete
    assert tree(target) == undisturbed


@pytest.mark.parametrize("kind", ["path", "file://", "obstore"])
def test_a_source_that_changes_while_it_is_read_is_read_again(kind, source, target, tmp_path):
    """Only what changed: the result is that of the source as it is at the end."""
    changing = tmp_path / "source.zarr"
    shutil.copytree(source, changing)
    opened = {"path": changing, "file://": f"file://{changing}"}.get(kind)
    if kind == "obstore":
        local = pytest.importorskip("obstore").store.LocalStore(changing)
        opened = zarr.storage.ObjectStore(local, read_only=True)

    def change(calls):
        if calls == CODED - 1:  # after the regions of one thread that come before
            band = zarr.open(changing)["reflectance"]
            band[0, :, :5] = band[0, :, 5:10]

    recompress_worker.register(change)
    report = recompress(opened, target, threads=1, retries=1, **SETTINGS)
    assert report.complete
    assert recompress_worker.Deadly.calls == CODED
    recompress_worker.register()
    assert recompress(changing, tmp_path / "after.zarr", **SETTINGS).complete
    new, old = tree(target), tree(tmp_path / "after.zarr")
    del new["zarr.json"], old["zarr.json"]  # they name the source
    assert new == old


def test_a_source_that_never_stays_as_it_is_is_not_finished(source, target, tmp_path):
    changing = tmp_path / "source.zarr"
    shutil.copytree(source, changing)

    def change(calls):
        zarr.open(changing)["scl"][0] = calls

    recompress_worker.register(change)
    report = recompress(changing, target, retries=0, **SETTINGS)
    assert not report.complete
    assert [failure.path for failure in report.failures] == ["scl"]
    assert "written to while it was read" in str(report.failures[0])
    assert_unreadable(target)
    recompress_worker.register()
    assert recompress(changing, target, **SETTINGS).complete
    assert (zarr.open(target)["scl"][:] == zarr.open(changing)["scl"][:]).all()


def test_a_lost_or_shortened_object_is_made_again(source, target, undisturbed):
    stopped_in_the_middle(source, target)
    lost, cut = sorted(finished_files(target))[:2]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    assert_unreadable(target)
    assert recompress(source, target, **SETTINGS).complete
    assert tree(target) == undisturbed


def test_a_changed_configuration_or_source_is_refused(source, target, tmp_path, undisturbed):
    changing = tmp_path / "source.zarr"
    shutil.copytree(source, changing)
    stopped_in_the_middle(changing, target)
    with pytest.raises(RecompressError, match=r"quality was 6\.0, is 5\.0"):
        recompress(changing, target, model=DEADLY, quality=5.0)
    with pytest.raises(RecompressError, match="config_sha256 was"):
        recompress(changing, target, zarr_format=2, **SETTINGS)
    zarr.open_group(changing, use_consolidated=False)["scl"].attrs["version"] = 2
    zarr.consolidate_metadata(changing)
    with pytest.raises(RecompressError, match="source_sha256 was"):
        recompress(changing, target, **SETTINGS)
    del zarr.open_group(changing, use_consolidated=False)["scl"].attrs["version"]
    zarr.consolidate_metadata(changing)
    for name in ("scl", "snow", "time", "x", "y"):
        array = zarr.open(changing)[name]
        array[...] = array[...][::-1]
    with pytest.raises(RecompressError, match="the source has changed since"):
        recompress(changing, target, **SETTINGS)
    assert_unreadable(target)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_other_values_in_the_source_of_a_complete_target_are_refused(
    source, target, tmp_path, zarr_format
):
    changing = tmp_path / "source.zarr"
    shutil.copytree(source, changing)
    settings = {"zarr_format": zarr_format, **SETTINGS}
    assert recompress(changing, target, **settings).complete
    assert recompress(changing, target, **settings).complete
    for name in ("reflectance", "scl", "snow", "time", "x", "y"):
        array = zarr.open(changing)[name]
        array[...] = array[...][::-1]
    with pytest.raises(RecompressError, match="the source has changed since"):
        recompress(changing, target, **settings)


def test_a_damaged_record_is_not_believed(source, target):
    stopped_in_the_middle(source, target)
    (target / "_tec" / "config.json").write_text('{"crc32": 1, "item": {}}')
    with pytest.raises(RecompressError, match="damaged"):
        recompress(source, target, **SETTINGS)


def test_what_is_written_is_read_back_and_compared(source, target):
    class Flipping(FullStore):
        """A store that keeps other bytes than it was given, of the same length."""

        async def set(self, key, value, byte_range=None):
            if key.startswith(("reflectance/c", "scl/c")):
                data = bytearray(value.to_bytes())
                data[len(data) // 2] ^= 255
                value = type(value).from_bytes(bytes(data))
            await self._store.set(key, value)

    report = recompress(
        source, Flipping(LocalStore(target), 0), retries=0, verify="full", **SETTINGS
    )
    assert {failure.path for failure in report.failures} == {"reflectance", "scl"}
    assert_unreadable(target)
