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
    cover = inpainting.clouds(128, 128, share, np.random.default_rng(0))
    assert cover.mean() == pytest.approx(share, abs=0.001)
    edges = (cover[:, 1:] != cover[:, :-1]).mean()
    assert edges <= 0.6 * 2 * share * (1 - share)  # of single pixels: all of it


def test_rows_are_scored_under_the_clouds_alone():
    dn = synthetic.cube(3, 64, bands=("B04", "B08"), clouds=False, nodata_edge=False).values
    methods = ["regression", "linear"]
    rows = list(inpainting.measure(dn, "here", methods, [0.3], shapes=1, dates=[1]))
    assert [(r.method, r.date, r.share) for r in rows] == [
        ("regression", 1, 0.3), ("linear", 1, 0.3),
    ]  # fmt: skip
    assert all(20 < r.psnr < 60 and 0 < r.inside <= 1 for r in rows)
    assert all(r.scored == 1 for r in rows)
    first, second = inpainting.summary(rows)
    assert (first["method"], second["method"]) == ("regression", "linear")
    ahead = first["ahead"]["linear"]
    assert ahead["psnr"] == pytest.approx(rows[0].psnr - rows[1].psnr, abs=1e-4)
    assert ahead["sam"] == pytest.approx(rows[1].sam - rows[0].sam, abs=1e-4)


def test_a_method_that_has_nothing_for_a_date_is_not_compared_on_it():
    dn = synthetic.cube(3, 32, bands=("B04",), clouds=False, nodata_edge=False).values
    rows = list(inpainting.measure(dn, "here", ["linear", "previous"], [1.0]))
    assert [(r.date, r.method) for r in rows] == [
        (0, "linear"), (1, "linear"), (1, "previous"), (2, "linear"), (2, "previous"),
    ]  # fmt: skip
    assert all(r.scored == 1 for r in rows)


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
    first, second = inpainting.allclear_samples(file, root, SIZE)
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
@pytest.mark.parametrize("method", ["regression", "linear"])
def test_allclear_scores_of_an_estimate(listing, method):
    file, root = listing
    sample = next(inpainting.allclear_samples(file, root, SIZE))
    guess = inpainting.allclear_estimate(sample, method)
    assert guess.shape == (13, SIZE, SIZE)
    scores = inpainting.allclear_scores(guess, sample.target, sample.target_hidden)
    assert scores["psnr"] > 40  # the ground brightens by 2 % a date
    assert scores["mae"] == pytest.approx(scores["rmse"], rel=0.9)
    assert scores["sam"] < 2


def test_the_spectral_angle_is_that_of_spectra():
    """Twice as bright is no angle; AllClear's own angle, along image rows, sees other things."""
    rng = np.random.default_rng(0)
    target = rng.uniform(100, 3000, (13, 16, 16))
    clear = np.zeros((16, 16), bool)
    scores = inpainting.allclear_scores(2 * target, target, clear)
    assert scores["sam"] == pytest.approx(0, abs=1e-4)
    uneven = target * np.linspace(0.5, 2, 16)[:, None]  # by row: spectra keep their direction
    scores = inpainting.allclear_scores(uneven, target, clear)
    assert scores["sam"] == pytest.approx(0, abs=1e-4)
    assert scores["sam_as_published"] > 5


@without_grid
def test_allclear_means_over_samples(listing, monkeypatch):
    file, root = listing
    monkeypatch.setattr(inpainting.allclear_samples, "__defaults__", (SIZE,))
    table = inpainting.allclear(file, root, ["linear"])
    assert set(table["linear"]) == {"psnr", "ssim", "mae", "rmse", "sam_as_published", "sam"}
    assert np.isfinite(list(table["linear"].values())).all()
