"""Icechunk as a target: everything is seen with the commit, or nothing is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import recompress_worker
import toy
import xarray as xr
import zarr
from recompress_worker import DEADLY
from test_recompress import assert_same_archive
from test_recompress_append import ALL, FIRST, GROWN, grow, write_source

from tec_zarr.errors import RecompressError, UnsupportedArrayError
from tec_zarr.face.cli import main
from tec_zarr.recompression.run import recompress
from tec_zarr.stac.append import append, open_written, write
from tec_zarr.stores.chunks import tec_spec

icechunk = pytest.importorskip("icechunk", reason="pip install 'tec_zarr[test]'")

SETTINGS = {"model": DEADLY, "quality": 6.0}


@pytest.fixture(autouse=True)
def _well_behaved_model():
    recompress_worker.register()


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "source.zarr", FIRST, 3)


@pytest.fixture
def repository():
    return icechunk.Repository.create(icechunk.in_memory_storage())


def commits(repository) -> list[str]:
    return [entry.message for entry in repository.ancestry(branch="main")]


def seen(repository, **version):
    where = version or {"branch": "main"}
    return repository.readonly_session(**where).store


@pytest.mark.parametrize("kind", ["repository", "session", "store"])
def test_an_archive_becomes_one_commit(source, repository, kind):
    target = repository if kind == "repository" else repository.writable_session("main")
    report = recompress(
        source, target.store if kind == "store" else target, verify="full", **SETTINGS
    )
    assert report.complete
    assert len(commits(repository)) == 2
    assert f"from file://{source}" in commits(repository)[0]
    assert_same_archive(seen(repository), source, consolidated=False)
    assert tec_spec(zarr.open(seen(repository))["reflectance"]).quality == 6
    assert recompress(source, repository, **SETTINGS).complete
    assert len(commits(repository)) == 2


def test_dates_are_appended_in_a_commit_and_the_old_ones_stay_readable(source, repository):
    assert recompress(source, repository, **SETTINGS).complete
    (first, *_) = repository.ancestry(branch="main")
    grow(source, ALL)
    assert recompress(source, repository, append=True).complete
    assert commits(repository)[0].startswith("Append dates")
    assert_same_archive(seen(repository), source, consolidated=False)
    before = xr.open_zarr(seen(repository, snapshot_id=first.id), consolidated=False)
    assert before.sizes["time"] == FIRST
    assert recompress(source, repository, append=True).regions == 0


@pytest.mark.parametrize("append", [False, True])
def test_killed_in_the_middle(source, tmp_path, append):
    """Nothing of the killed run is visible, and the next one begins anew."""
    place = tmp_path / "repository"
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(place)))
    if append:
        assert recompress(source, repository, **SETTINGS).complete
        grow(source, ALL)
    before = commits(repository)
    flag = tmp_path / "flag"
    flag.touch()
    more = ["--append"] if append else ["--model", DEADLY, "--quality", "6"]
    command = [sys.executable, recompress_worker.__file__, "client", "SIGKILL", flag, "recompress",
               source, f"icechunk:{place}", *more]  # fmt: skip
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    killed = subprocess.run(command, env={**os.environ, **path}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(place)))
    assert commits(repository) == before
    if append:
        shown = xr.open_zarr(seen(repository), consolidated=False)
        assert shown.sizes["time"] == FIRST
    settings = {"append": True} if append else SETTINGS
    assert recompress(source, f"icechunk:{place}", **settings).complete
    assert_same_archive(seen(repository), source, consolidated=False)


@pytest.mark.parametrize("append", [False, True])
def test_two_writers(source, repository, append):
    """The second to commit is told, shows nothing, and finds the work done."""
    if append:
        assert recompress(source, repository, **SETTINGS).complete
        grow(source, ALL)
    settings = {"append": True} if append else SETTINGS
    recompress_worker.register()
    inside = []

    def other_commits_first(calls):
        if not inside:
            inside.append(calls)
            assert recompress(source, repository, **settings).complete

    recompress_worker.register(other_commits_first)
    with pytest.raises(RecompressError, match=r"somebody else has committed to 'main'.*Repeat"):
        recompress(source, repository, threads=1, **settings)
    assert len(commits(repository)) == 2 + append
    assert_same_archive(seen(repository), source, consolidated=False)
    assert recompress(source, repository, **settings).complete
    assert len(commits(repository)) == 2 + append


def test_a_source_that_grows_meanwhile(source, repository):
    recompress_worker.register(lambda calls: grow(source, GROWN) if calls == 1 else None)
    assert recompress(source, repository, **SETTINGS).complete
    assert xr.open_zarr(seen(repository), consolidated=False).sizes["time"] == FIRST
    recompress_worker.register()
    assert recompress(source, repository, append=True).complete
    assert_same_archive(seen(repository), source, consolidated=False)


def test_failed_regions_are_not_committed(source, repository):
    def fail(calls):
        if calls == 2:
            raise KeyError("stop")

    recompress_worker.register(fail)
    session = repository.writable_session("main")
    assert not recompress(source, session.store, retries=0, **SETTINGS).complete
    assert not session.has_uncommitted_changes
    assert len(commits(repository)) == 1
    recompress_worker.register()
    assert recompress(source, session.store, **SETTINGS).complete
    assert_same_archive(seen(repository), source, consolidated=False)


def test_what_cannot_be_a_target_is_refused(source, repository, tmp_path):
    with pytest.raises(UnsupportedArrayError, match="format 3"):
        recompress(source, repository, zarr_format=2, **SETTINGS)
    session = repository.writable_session("main")
    zarr.create_group(session.store, attributes={"mine": 1})
    with pytest.raises(RecompressError, match="has changes that are not committed"):
        recompress(source, session, **SETTINGS)
    session.commit("other data")
    with pytest.raises(RecompressError, match=r"read-only.*writable_session"):
        recompress(source, session, **SETTINGS)
    with pytest.raises(RecompressError, match="not empty"):
        recompress(source, repository, **SETTINGS)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecompressError, match="cannot be opened"):
        recompress(source, f"icechunk:{tmp_path / 'file'}", **SETTINGS)
    assert len(commits(repository)) == 2


def test_a_cluster_is_refused(source, repository):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
        pytest.raises(RecompressError, match="leave the cluster out"),
    ):
        recompress(source, repository, client=client, **SETTINGS)


def test_the_command_writes_and_reads_repositories(source, tmp_path):
    place = f"icechunk:{tmp_path / 'repository'}"
    assert main(["recompress", str(source), place, "--quality", "3"]) == 0
    plain = tmp_path / "again.zarr"
    with pytest.raises(RecompressError, match="stored with TEC already"):
        recompress(place, plain)


def test_stac_items_become_commits_and_later_ones_are_appended(repository, tmp_path):
    stac = pytest.importorskip("test_stac")
    ds = stac.canonical()
    write(ds.isel(time=slice(0, 6)), repository, model=toy.NAME, quality=2)
    assert len(commits(repository)) == 2
    (first, *_) = repository.ancestry(branch="main")
    assert append(ds.isel(time=slice(0, 7)), repository.writable_session("main")) == 1
    assert append(ds.isel(time=slice(6, 11)), repository) == 4
    assert len(commits(repository)) == 4
    write(ds, tmp_path / "at-once.zarr", model=toy.NAME, quality=2)
    new, old = open_written(repository), xr.open_zarr(tmp_path / "at-once.zarr")
    for name in ("reflectance", "scl", "time"):
        np.testing.assert_array_equal(new[name], old[name])
    before = xr.open_zarr(seen(repository, snapshot_id=first.id), consolidated=False)
    assert before.sizes["time"] == 6
    with pytest.raises(UnsupportedArrayError, match="exists"):
        write(ds, repository, model=toy.NAME)


def test_an_interrupted_append_of_items_leaves_nothing(repository, monkeypatch):
    stac = pytest.importorskip("test_stac")
    ds = stac.canonical(9)
    write(ds.isel(time=slice(0, 6)), repository, model=toy.NAME, quality=2)
    session = repository.writable_session("main")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tec_zarr.stac.append._commit", killed)
        with pytest.raises(KeyboardInterrupt):
            append(ds.isel(time=slice(6, 9)), session)
    assert not session.has_uncommitted_changes
    assert open_written(repository).sizes["time"] == 6
    other = repository.writable_session("main")
    assert append(ds.isel(time=slice(6, 8)), repository) == 2
    with pytest.raises(RecompressError, match="somebody else has committed"):
        append(ds.isel(time=slice(6, 9)), other)
    assert open_written(repository).sizes["time"] == 8
    assert append(ds.isel(time=slice(6, 9)), repository) == 1
