"""The notebook runs; the benchmark's clouds, AllClear's layout and its scores are what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tec_zarr.cubes import synthetic

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import allclear  # noqa: E402
import gap_cases  # noqa: E402
import gap_rivals  # noqa: E402
import inpainting  # noqa: E402


def test_the_notebook_runs_and_regression_wins_in_it(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples" / "inpaint_clouds.ipynb").read_text("utf-8"))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    said = capsys.readouterr().out
    assert "unchanged outside: True" in said
    errors = {
        line.split()[0]: float(line.split("error")[1].split()[0])
        for line in said.splitlines()
        if "root mean square error" in line
    }
    assert min(errors, key=errors.get) == "regression"
    assert (tmp_path / "before-after.png").stat().st_size > 10_000


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_clouds_cover_their_share_in_few_pieces(share):
    cover = gap_cases.clouds(128, 128, share, np.random.default_rng(0))
    assert cover.mean() == pytest.approx(share, abs=0.001)
    edges = (cover[:, 1:] != cover[:, :-1]).mean()
    assert edges <= 0.6 * 2 * share * (1 - share)  # of single pixels: all of it


def hiding(dates, share, *, gone=1):
    """A case of a synthetic series: a share of the date ``gone`` is hidden."""
    dn = synthetic.cube(dates, 64, bands=("B04", "B08"), clouds=False, nodata_edge=False).values
    hidden = np.zeros((dates, 64, 64), bool)
    hidden[gone] = gap_cases.clouds(64, 64, share, np.random.default_rng(0))
    return gap_cases.case("here", f"{share:.0%}", "one", dn, None, hidden, gone, ("B04", "B08"))


def test_rows_are_scored_under_the_clouds_alone():
    rows = list(inpainting.measure(hiding(3, 0.3), 0, ["regression", "linear"]))
    assert [r.method for r in rows] == ["regression", "linear"]
    assert all(20 < r.psnr < 60 and 0 < r.inside <= 1 and 0 <= r.ndvi < 0.2 for r in rows)
    assert all(r.scored == 1 for r in rows)
    first, second = inpainting.summary(rows)
    assert (first["method"], second["method"]) == ("regression", "linear")
    ahead = first["ahead"]["linear"]
    assert ahead["psnr"] == pytest.approx(rows[0].psnr - rows[1].psnr, abs=1e-4)
    assert ahead["sam"] == pytest.approx(rows[1].sam - rows[0].sam, abs=1e-4)


def test_a_method_that_has_nothing_for_a_date_is_not_compared_on_it():
    rows = list(inpainting.measure(hiding(3, 1.0, gone=0), 0, ["linear", "previous"]))
    assert [(r.method, r.scored) for r in rows] == [("linear", 1)]


def test_gaps_of_dense_series_hide_whole_dates_and_score_one(tmp_path):
    """A cloud of the source hides its pixels and is no truth."""
    rng = np.random.default_rng(0)
    dn = rng.uniform(300, 400, (30, 12, 16, 16)).astype("uint16")
    dn[4, :, :8], dn[14, 1, 2, 2] = 9_000, 9_000
    (tmp_path / "train").mkdir()
    np.savez(tmp_path / "train" / "a__b.npz", dn=dn, present=np.ones(12, bool))
    times = [str(np.datetime64("2022-01-01") + np.timedelta64(5 * i, "D")) for i in range(30)]
    (tmp_path / "index.json").write_text(json.dumps([{"id": "a__b", "times": times}]))
    cases = list(gap_cases.dense(tmp_path / "train", ["a__b", "missing"]))
    assert len({(case.part, case.row) for case in cases}) == 2 * 8
    for case in cases:
        whole = (case.cube == 0).all(("band", "y", "x")).values
        count = int(case.row.split()[2]) if case.row.startswith("gap") else 1
        assert whole.sum() + 1 == count  # the date itself is there to be compared with
        assert case.mask.any(("y", "x")).values.tolist() == [
            n == case.date for n in range(len(case.cube))
        ]
        assert case.scored.mean() > (0.9 if "hidden" not in case.row else 0.2)
        assert len(case.cube) == (12 if case.part == "12 dates" else 30) or "date" in case.row
    cloudy = gap_cases.cloudy(dn, gap_cases.L2A_BANDS)
    assert cloudy[4, :8].all()
    assert cloudy[14, 2, 2]
    assert cloudy.mean() < 0.03


def test_whittaker_weights_are_what_the_library_smooths_with():
    library = pytest.importorskip("whittaker_eilers", reason="pip install whittaker-eilers")
    days, clear = np.array([0.0, 3, 10, 11, 30, 50]), np.array([1, 1, 0, 1, 1, 1], bool)
    values = np.array([1.0, 2, 0, 4, 3, 2])
    for order in (1, 2):
        smoother = library.WhittakerSmoother(5.0, order, 6, days.tolist(), clear.astype(float))
        weights = gap_rivals.whittaker(days, 2, clear, order, 5.0)
        assert weights @ values == pytest.approx(smoother.smooth(values.tolist())[2], rel=1e-5)


def test_harmonic_regression_finds_a_yearly_course_through_gaps():
    rng = np.random.default_rng(0)
    days = np.arange(0.0, 360, 10)
    course = 2000 + 500 * np.cos(2 * np.pi * days / 365.25)
    cube = (course[:, None, None, None] * np.ones((1, 2, 8, 8))).astype("float32")
    cube[np.broadcast_to((rng.random((36, 1, 8, 8)) < 0.3), cube.shape)] = np.nan
    found = gap_rivals.RIVALS["harmonics"].run(cube, days, 20, orders=1, ridge=1e-6)
    np.testing.assert_allclose(found, course[20], rtol=1e-3)


def test_vpint2_carries_the_ratio_to_the_reference_into_the_cloud():
    pytest.importorskip("scipy", reason="pip install scipy")
    ground = np.random.default_rng(0).uniform(500, 3000, (2, 24, 24)).astype("float32")
    cube = np.stack([ground, 1.5 * ground])
    cube[1, :, 5:15, 8:20] = np.nan
    found = gap_rivals.vpint2(cube, np.arange(2.0), 1, priority=1.0)
    np.testing.assert_allclose(found[:, 5:15, 8:20], 1.5 * ground[:, 5:15, 8:20], rtol=1e-3)
    cube[1] = np.nan
    assert np.isnan(gap_rivals.vpint2(cube, np.arange(2.0), 1, priority=1.0)).all()


def test_the_page_says_what_the_results_say():
    assert inpainting.PAGE.read_text(encoding="utf-8") == inpainting.page()


# ------------------------------------------------------------------------------- AllClear

without_grid = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

SIZE = 32


@pytest.fixture
def listing(tmp_path):
    """Two samples in the layout of AllClear: images larger than the crop, masks of five bands."""
    rasterio = pytest.importorskip("rasterio", reason="pip install 'tec_zarr[test]'")
    rng = np.random.default_rng(0)
    days = ["2022-06-01", "2022-06-06", "2022-06-11", "2022-06-16"]

    def write(file, data):
        file.parent.mkdir(parents=True, exist_ok=True)
        count, height, width = data.shape
        profile = {"driver": "GTiff", "count": count, "height": height, "width": width,
                   "dtype": "float32"}  # fmt: skip
        with rasterio.open(file, "w", **profile) as target:
            target.write(data.astype(np.float32))

    entries = {}
    for number, roi in enumerate(("roi11", "roi12")):
        ground = rng.uniform(500, 3000, (13, SIZE + 8, SIZE + 8))
        pairs = []
        for i, day in enumerate(days):
            month, date = day[:7].replace("-", "_"), day.replace("-", "_")
            name = f"{roi}/{month}/s2_toa/{roi}_s2_toa_{date}_median.tif"
            image, mask = ground * (1 + 0.02 * i), np.zeros((5, SIZE + 8, SIZE + 8))
            if i == 0:
                image[:, :20], mask[1, :20] = 9000, 1  # cloud
            if i == 2:
                image[:, 30:], mask[4, 30:] = np.nan, np.nan
                mask[4, :6] = 1  # shadow in the target
            write(tmp_path / name, image)
            write(tmp_path / name.replace("s2_toa", "cld_shdw"), mask)
            pairs.append([f"{day} 10:00:00", f"/scratch/allclear/dataset_v3/{name}"])
        target = pairs.pop(2)
        entries[str(number)] = {"roi": [roi, [47.8, 10.3]], "s2_toa": pairs, "target": [target]}
    file = tmp_path / "test_tx3.json"
    file.write_text(json.dumps(entries))
    return file, tmp_path


@without_grid
def test_allclear_is_read_as_its_loader_does(listing):
    file, root = listing
    first, second = allclear.allclear_samples(file, root, SIZE)
    assert first.inputs.shape == (3, 13, SIZE, SIZE)
    assert first.days.tolist() == [-10, -5, 5]
    assert first.hidden[0, :16].all()  # 20 rows less 4 of the centre crop
    assert not first.hidden[0, 16:].any()
    assert first.target_hidden[:2].all()
    assert first.target_hidden[26:].all()  # NaN
    assert not first.target_hidden[2:26].any()
    assert first.inputs.max() <= 10_000
    assert second.name == "1"


@without_grid
def test_a_public_selection_of_allclear_is_read_as_the_whole(listing, tmp_path):
    """As in jesslyw/allclear-benchmark: names for numbers, paths below data/, other sensors."""
    file, root = listing
    entries = {}
    for entry in json.loads(file.read_text()).values():
        for kind in ("s2_toa", "target"):
            for pair in entry[kind]:
                pair[1] = "data/" + pair[1].removeprefix("/scratch/allclear/dataset_v3/")
        entry["s1"] = [["2022-06-02 09:31:18", "data/roi11/2022_06/s1/missing.tif"]]
        entries[f"{entry['roi'][0]}_2022-06-01_2022-06-16"] = entry
    selection = tmp_path / "vpint2_samples.json"
    selection.write_text(json.dumps(entries))
    whole = list(allclear.allclear_samples(file, root, SIZE))
    chosen = list(allclear.allclear_samples(selection, root, SIZE))
    assert [one.name for one in chosen] == list(entries)
    for one, other in zip(chosen, whole, strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
        np.testing.assert_array_equal(one.target_hidden, other.target_hidden)


@without_grid
@pytest.mark.parametrize("method", ["regression", "linear"])
def test_allclear_scores_of_an_estimate(listing, method):
    file, root = listing
    sample = next(allclear.allclear_samples(file, root, SIZE))
    guess = allclear.allclear_estimate(sample, method)
    assert guess.shape == (13, SIZE, SIZE)
    scores = allclear.allclear_scores(guess, sample.target, sample.target_hidden)
    assert scores["psnr"] > 40  # the ground brightens by 2 % a date
    assert scores["mae"] == pytest.approx(scores["rmse"], rel=0.9)
    assert scores["sam"] < 2


def test_the_spectral_angle_is_that_of_spectra():
    """Twice as bright is no angle; AllClear's own angle, along image rows, sees other things."""
    rng = np.random.default_rng(0)
    target = rng.uniform(100, 3000, (13, 16, 16))
    clear = np.zeros((16, 16), bool)
    scores = allclear.allclear_scores(2 * target, target, clear)
    assert scores["sam"] == pytest.approx(0, abs=1e-4)
    uneven = target * np.linspace(0.5, 2, 16)[:, None]  # by row: spectra keep their direction
    scores = allclear.allclear_scores(uneven, target, clear)
    assert scores["sam"] == pytest.approx(0, abs=1e-4)
    assert scores["sam_as_published"] > 5


@without_grid
def test_allclear_means_over_samples(listing, monkeypatch):
    file, root = listing
    monkeypatch.setattr(allclear.allclear_samples, "__defaults__", (SIZE,))
    table = allclear.allclear(file, root, ["linear"])
    assert set(table["linear"]) == {"psnr", "ssim", "mae", "rmse", "sam_as_published", "sam"}
    assert np.isfinite(list(table["linear"].values())).all()
