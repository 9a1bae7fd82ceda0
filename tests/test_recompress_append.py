"""recompress(append=True): later dates into a finished target, whatever breaks meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import recompress_worker
import xarray as xr
import zarr
from recompress_worker import DEADLY, FailingStore
from test_recompress import assert_same_archive, make_archive, tree, write_archive
from zarr.storage import LocalStore

from tec_zarr.errors import RecompressError
from tec_zarr.face.cli import main
from tec_zarr.recompression.manifest import Manifest
from tec_zarr.recompression.run import recompress
from tec_zarr.stores.embed import embed_weights

SETTINGS = {"model": DEADLY, "quality": 6.0}
FIRST, GROWN, ALL = 5, 9, 12
"""Dates of the source as it grows. Chunks hold four."""


@pytest.fixture(autouse=True)
def _well_behaved_model():
    recompress_worker.register()


def archive(dates: int) -> xr.Dataset:
    ds = make_archive(ALL).load()
    ds.reflectance.values[4:6] = ds.reflectance.values[8:10]
    return ds.isel(time=slice(dates))


def grow(source: Path, dates: int) -> None:
    """Give the source its dates up to this number, as xarray appends them."""
    there = xr.open_zarr(source, consolidated=False, decode_cf=False).sizes["time"]
    later = archive(dates).isel(time=slice(there, None))
    later = later.drop_vars([n for n in later.variables if "time" not in later[n].dims])
    later.to_zarr(source, append_dim="time")


def write_source(path: Path, dates: int = FIRST, zarr_format: int = 2) -> Path:
    write_archive(path, zarr_format, archive(dates))
    return path


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "source.zarr")


@pytest.fixture
def target(tmp_path, source):
    """A finished target with the first dates."""
    path = tmp_path / "tec.zarr"
    assert recompress(source, path, **SETTINGS).complete
    recompress_worker.register()
    return path


def images(folder: Path) -> dict[str, bytes]:
    """Files of the arrays of images, whose chunks do not depend on how many dates there are."""
    files = tree(folder)
    return {name: data for name, data in files.items() if name.startswith(("reflectance/", "scl/"))}


def made_at_once(source: Path, folder: Path) -> dict[str, bytes]:
    recompress_worker.register()
    assert recompress(source, folder, **SETTINGS).complete
    return images(folder)


def assert_still_there(target: Path, dates: int = FIRST) -> None:
    """Readers see the dates from before, whole."""
    shown = xr.open_zarr(target).load()
    assert shown.sizes["time"] == dates
    wanted = xr.decode_cf(archive(dates))
    np.testing.assert_array_equal(shown.time, wanted.time)
    np.testing.assert_array_equal(shown.scl, wanted.scl)
    assert np.abs(shown.reflectance - wanted.reflectance).max() < 3e-4


def stopped_in_the_middle(source: Path, target: Path) -> None:
    def fail(calls):
        if calls == 2:
            raise KeyError("stop")

    recompress_worker.register(fail)
    report = recompress(source, target, retries=0, threads=1, append=True)
    assert not report.complete
    recompress_worker.register()


@pytest.mark.parametrize("old", [2, 3])
@pytest.mark.parametrize("new", [2, 3])
def test_only_dates_that_the_target_lacks_are_made(tmp_path, old, new):
    source = write_source(tmp_path / "source.zarr", 8, old)
    target = tmp_path / "tec.zarr"
    settings = {"zarr_format": new, **SETTINGS}
    assert recompress(source, target, **settings).complete
    before = {file: file.stat().st_mtime_ns for file in (target / "reflectance").rglob("*.*.*.*")}
    before |= {file: file.stat().st_mtime_ns for file in (target / "reflectance/c").rglob("*")}
    before = {file: time for file, time in before.items() if file.is_file()}
    assert before
    for dates, coded in ((GROWN, 1), (ALL, 1)):
        recompress_worker.register()
        grow(source, dates)
        report = recompress(source, target, append=True, verify="full", **settings)
        assert report.complete
        assert recompress_worker.Deadly.calls == coded
        assert 0 < report.max_error < 3
        consolidated = 2 in (old, new)
        assert_same_archive(target, source, consolidated=consolidated)
        assert xr.open_zarr(target, consolidated=consolidated).sizes["time"] == dates
    assert {file: file.stat().st_mtime_ns for file in before} == before
    finished = tree(target)
    assert recompress(source, target, append=True).regions == 0
    assert recompress_worker.Deadly.calls == 1
    assert tree(target) == finished
    assert not (target / "_tec").exists()


def test_an_append_makes_what_a_whole_run_makes(source, target, tmp_path):
    grow(source, ALL)
    assert recompress(source, target, append=True).complete
    assert recompress_worker.Deadly.calls == 2
    assert images(target) == made_at_once(source, tmp_path / "whole.zarr")


def test_without_a_target_all_dates_are_copied(source, tmp_path):
    assert recompress(source, tmp_path / "tec.zarr", append=True, **SETTINGS).complete
    assert_still_there(tmp_path / "tec.zarr")


def test_a_plain_run_names_append_when_the_source_has_grown(source, target):
    grow(source, GROWN)
    before = tree(target)
    with pytest.raises(RecompressError, match=r"dates was .* is .*append=True"):
        recompress(source, target, **SETTINGS)
    assert tree(target) == before


def test_killed_in_the_middle(source, target, tmp_path):
    grow(source, ALL)
    flag = tmp_path / "flag"
    flag.touch()
    command = [sys.executable, recompress_worker.__file__, "client", "SIGKILL", flag,
               "recompress", source, target, "--append"]  # fmt: skip
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    killed = subprocess.run(command, env={**os.environ, **path}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert_still_there(target)
    report = recompress(source, target, append=True)
    assert report.complete
    assert 0 < report.resumed < report.regions
    assert images(target) == made_at_once(source, tmp_path / "whole.zarr")
    assert_same_archive(target, source)


@pytest.mark.parametrize("document", ["scl/zarr.json", "zarr.json"])
def test_interrupted_when_the_dates_become_visible(document, source, target, tmp_path):
    grow(source, ALL)
    last = len(make_archive().variables) + 1
    store = FailingStore(LocalStore(target), document, 1 if "/" in document else last)
    kept = (target / document).read_bytes()
    with pytest.raises(RecompressError, match="all regions are finished"):
        recompress(source, store, append=True)
    (target / document).write_bytes(kept)  # files are replaced whole
    report = recompress(source, target, append=True)
    assert report.complete
    assert report.resumed == report.regions
    assert images(target) == made_at_once(source, tmp_path / "whole.zarr")
    assert_same_archive(target, source)


def test_a_source_that_has_grown_since_an_append_was_stopped(source, target, tmp_path):
    """Regions that are whole stay, the last one is longer."""
    grow(source, 10)
    stopped_in_the_middle(source, target)
    assert_still_there(target)
    whole = [done for done in Manifest(LocalStore(target)).finished().values()
             if "reflectance/c/1/0/0/0" in done.objects]  # fmt: skip
    grow(source, ALL)
    report = recompress(source, target, append=True, threads=1)
    assert report.complete
    assert report.resumed
    assert recompress_worker.Deadly.calls == 2 - len(whole)
    assert images(target) == made_at_once(source, tmp_path / "whole.zarr")
    assert_same_archive(target, source)


def test_a_source_that_grows_while_it_is_read(source, target):
    grow(source, GROWN)
    recompress_worker.register(lambda calls: grow(source, ALL) if calls == 1 else None)
    assert recompress(source, target, append=True).complete
    assert_still_there(target, GROWN)
    recompress_worker.register()
    assert recompress(source, target, append=True).complete
    assert_same_archive(target, source)


def test_one_writer_at_a_time(source, target):
    grow(source, ALL)
    seen = []

    def second(calls):
        with pytest.raises(RecompressError, match="another run is at work"):
            recompress(source, target, append=True)
        seen.append(calls)

    recompress_worker.register(second)
    assert recompress(source, target, append=True, threads=1).complete
    assert seen == [1, 2]
    assert_same_archive(target, source)


def test_who_comes_after_another_writer_finds_nothing_to_do(source, target, monkeypatch):
    """It planned while the other was at work, and got the lock when that one had finished."""
    from tec_zarr.recompression.run import Lock

    grow(source, ALL)
    held = Lock.held

    def other_finishes_first(self):
        monkeypatch.setattr(Lock, "held", held)
        assert recompress(source, target, append=True).complete
        return held(self)

    monkeypatch.setattr(Lock, "held", other_finishes_first)
    report = recompress(source, target, append=True)
    assert (report.complete, report.regions) == (True, 0)
    assert recompress_worker.Deadly.calls == 2


def test_an_append_that_another_version_began_is_begun_again(source, target, monkeypatch):
    from tec_zarr.recompression import plan

    grow(source, ALL)
    version = plan.importlib.metadata.version
    monkeypatch.setattr(plan.importlib.metadata, "version", lambda name: "0.0.1")
    stopped_in_the_middle(source, target)
    monkeypatch.setattr(plan.importlib.metadata, "version", version)
    report = recompress(source, target, append=True)
    assert report.complete
    assert not report.resumed
    assert_same_archive(target, source)


def change(source: Path, what: str) -> None:
    """Do something to a source that has grown, after which it is not what the target was made of.

    Consolidated metadata are made again.
    """
    if what == "fewer dates":
        shutil.rmtree(source)
        write_source(source, FIRST - 1)
        return
    root = zarr.open_group(source, use_consolidated=False)
    if what == "an earlier date":
        root["time"][1] = root["time"][1] + 1
    elif what == "later dates":
        root["time"][ALL - 2 :] = root["time"][ALL - 2 :][::-1]
    elif what == "attributes":
        root["reflectance"].attrs["scale_factor"] = 2e-4
    elif what == "pixels":
        for name in ("reflectance", "scl", "snow"):
            root[name][:FIRST] = root[name][:FIRST][..., ::-1]
    elif what == "grid":
        root["x"][0] = -1
    elif what == "a new array":
        root.create_array("new", data=np.zeros(3))
    elif what == "an array less":
        del root["snow"]
    elif what == "no dates":
        del root["time"]
    zarr.consolidate_metadata(source)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("fewer dates", r"has 4 dates, the target has 5 already.*make another target"),
        ("an earlier date", r"time of the source differs .* position 1 .*make another target"),
        ("later dates", r"time of the source is out of order: .*sort the source's dates"),
        ("attributes", r"reflectance .* another scale_factor \(was 0.0001, is 0.0002\).*Restore"),
        ("pixels", "the source has changed since"),
        ("grid", r"x of the source differs from the target's at position 0 \(-1"),
        ("a new array", "the source has new, which the target lacks.*make another target"),
        ("an array less", "the source lacks snow.*make another target"),
        ("no dates", "the source lacks time"),
    ],
)
def test_what_is_not_the_same_source_with_later_dates_is_refused(source, target, what, message):
    grow(source, ALL)
    change(source, what)
    before = tree(target)
    with pytest.raises(RecompressError, match=f"(?s){message}"):
        recompress(source, target, append=True)
    assert tree(target) == before


def test_dates_without_a_coordinate_are_refused(tmp_path):
    source = write_source(tmp_path / "source.zarr")
    del zarr.open_group(source, use_consolidated=False)["time"]
    zarr.consolidate_metadata(source)
    assert recompress(source, tmp_path / "tec.zarr", **SETTINGS).complete
    array = zarr.open_group(source, use_consolidated=False)["reflectance"]
    array.resize((FIRST + 1, *array.shape[1:]))
    zarr.consolidate_metadata(source)
    with pytest.raises(RecompressError, match=r"reflectance .* has no coordinate 'time'"):
        recompress(source, tmp_path / "tec.zarr", append=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quality": 5.0}, r"quality was 6\.0, is 5\.0"),
        ({"zarr_format": 2}, "zarr_format was 3, is 2"),
        ({"chunks": {"y": 20}}, r"chunks was None, is \{'y': 20\}"),
        ({"variables": "scl"}, r"variables was None, is \['scl'\]"),
    ],
)
def test_other_settings_are_refused(source, target, settings, message):
    grow(source, ALL)
    with pytest.raises(RecompressError, match=f"{message}.*leave these out"):
        recompress(source, target, append=True, **settings)
    assert recompress(source, target, append=True, **SETTINGS).complete


def test_what_was_added_to_the_target_stays(source, tmp_path):
    target = tmp_path / "tec.zarr"
    assert recompress(source, target, quality=4).complete
    zarr.open_group(target).attrs["doi"] = "10.0/0"
    zarr.open_group(target)["reflectance"].attrs["comment"] = "seen"
    embed_weights(target)
    weights = {name: data for name, data in tree(target).items() if "weights" in name}
    assert weights
    grow(source, GROWN)
    zarr.open_group(source).attrs["title"] = "longer"
    assert recompress(source, target, append=True).complete
    back = zarr.open_group(target)
    assert (back.attrs["doi"], back.attrs["title"]) == ("10.0/0", "longer")
    assert back["reflectance"].attrs["comment"] == "seen"
    assert {name: tree(target)[name] for name in weights} == weights
    assert xr.open_zarr(target).sizes["time"] == GROWN


def test_the_command(source, target, capsys):
    grow(source, ALL)
    assert main(["recompress", str(source), str(target), "--append", "--dry-run"]) == 1
    assert "leave out --append" in capsys.readouterr().err
    assert main(["recompress", str(source), str(target), "--append"]) == 0
    assert_same_archive(target, source)
    assert main(["recompress", str(source), str(target), "--append"]) == 0
    assert "has all dates" in capsys.readouterr().out
