"""The benchmarks tell the truth: bytes are streams that decode, ratios are what they say."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

imagecodecs = pytest.importorskip("imagecodecs")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import classical  # noqa: E402
import environment  # noqa: E402
import rate_distortion  # noqa: E402
import report  # noqa: E402
import speed  # noqa: E402

from tec_zarr import metrics, synthetic  # noqa: E402
from tec_zarr.sentinel2 import L2A_BANDS  # noqa: E402


@pytest.fixture(scope="module")
def dn():
    cube = synthetic.cube(dates=2, size=64, seed=1, nodata_edge=False, resampling="bilinear")
    return np.ascontiguousarray(cube.values)


@pytest.mark.parametrize("codec", classical.CODECS, ids=lambda codec: codec.name)
def test_more_bytes_buy_a_better_cube(codec, dn):
    if "x265" in codec.name or "hevc" in codec.name:
        pytest.importorskip("av")
    (small, poor), (large, good) = sorted(
        (codec.code(dn, codec.levels[0]), codec.code(dn, codec.levels[-1])), key=lambda r: r[0]
    )
    assert small < large < dn.nbytes
    assert good.shape == dn.shape
    assert good.dtype == np.uint16
    assert 25 < metrics.psnr(dn, poor) < metrics.psnr(dn, good)


def test_klt_codecs_take_any_number_of_bands(dn):
    pytest.importorskip("av")
    for code in (classical.klt_x265_tuned, classical.klt_jpeg2000_joint):
        _, decoded = code(np.ascontiguousarray(dn[:, :4]), 40)
        assert decoded.shape == (2, 4, 64, 64)


def test_without_data_the_benchmark_measures_a_synthetic_cube(tmp_path):
    (scene,) = environment.scenes(tmp_path / "nothing")
    assert (scene.name, scene.dn.shape) == ("synthetic", (4, 12, 256, 256))


def test_a_subset_has_its_own_name_and_hash(dn):
    scene = environment.Scene("here", "seasonal", L2A_BANDS, dn)
    rgb = scene.select(("B04", "B03", "B02"))
    np.testing.assert_array_equal(rgb.dn[:, 0], dn[:, L2A_BANDS.index("B04")])
    assert rgb.name == "here [B04 B03 B02]"
    assert rgb.sha256 != scene.select(("B02", "B03", "B04")).sha256


def _points(codec, scale, scene="a", kind="seasonal"):
    return [
        rate_distortion.Point(scene, kind, codec, 0.0, 1, scale * 2 ** (psnr / 3), psnr, 0.0)
        for psnr in (34.0, 40.0, 48.0)
    ]


def test_summary_states_ratios_to_each_codec_and_to_the_better_klt():
    points = [
        point
        for scene, factor in (("a", 1.0), ("b", 4.0))
        for codec, scale in (("tec", 0.5), ("jpeg2000", factor), ("klt-x265", 0.8))
        for point in _points(codec, scale, scene)
    ]
    points += _points("klt-jpeg2000-joint", 0.6, "a") + _points("klt-jpeg2000-joint", 2.0, "b")
    found = rate_distortion.summary(points)
    assert found["scenes"]["a"]["tec_against"]["jpeg2000"]["ratio"] == pytest.approx(0.5)
    assert found["scenes"]["a"]["tec_against"]["jpeg2000"]["bd_rate_percent"] == pytest.approx(-50)
    assert found["scenes"]["b"]["tec_to_better_klt"]["42"] == pytest.approx(0.5 / 0.8)
    assert found["seasonal"]["tec_against"]["jpeg2000"]["ratio"] == pytest.approx(0.25)
    assert found["seasonal"]["tec_to_better_klt"]["42"] == pytest.approx(
        (0.5 / 0.6 * 0.5 / 0.8) ** 0.5
    )


@pytest.fixture
def small_run(monkeypatch, tmp_path, dn):
    pytest.importorskip("matplotlib")
    bands = ("B05", "B8A", "B11")  # none of the subsets that get rows of their own
    scene = replace(environment.Scene("all", "seasonal", L2A_BANDS, dn).select(bands), name="here")
    monkeypatch.setattr(rate_distortion, "scenes", lambda folder: [scene])
    codecs = [
        rate_distortion.Contender(name, "", (54.0, 60.0), lambda scene, level: _coded(scene, level))
        for name in ("tec", "jpeg2000")
    ]
    monkeypatch.setattr(rate_distortion, "contenders", lambda quick: codecs)
    monkeypatch.setattr(rate_distortion, "_tec_identity", dict)

    def run(*arguments):
        rate_distortion.main(["--out", str(tmp_path), *arguments])
        return json.loads((tmp_path / "rate_distortion.json").read_text())

    return run, tmp_path


def _coded(scene, level):
    return classical.jpeg2000(scene.dn, level)


def test_one_run_writes_points_summary_plot_and_where_it_ran(small_run):
    run, folder = small_run
    results = run()
    rows = list(csv.DictReader((folder / "rate_distortion.csv").open()))
    assert len(rows) == len(results["points"])
    for point in results["points"]:
        assert point["bpppb"] == pytest.approx(8 * point["bytes"] / (2 * 3 * 64 * 64), rel=1e-4)
    assert (folder / "rate_distortion.png").read_bytes().startswith(b"\x89PNG")
    assert results["machine"]["cpu"]
    assert results["versions"]["imagecodecs"] == imagecodecs.__version__
    assert len(results["data"]["here"]) == 64
    assert results["measured"]["tec"]["merged"] is False


def test_measuring_one_codec_again_keeps_the_rest_and_says_so(small_run):
    run, _ = small_run
    before = run()
    after = run("--only", "tec")
    assert [p for p in after["points"] if p["codec"] != "tec"] == [
        p for p in before["points"] if p["codec"] != "tec"
    ]
    assert after["measured"]["tec"]["merged"] is True
    assert after["measured"]["jpeg2000"] == before["measured"]["jpeg2000"]


@pytest.mark.parametrize("part", ["machine", "versions", "data"])
def test_results_of_another_machine_or_data_are_not_merged(small_run, part):
    run, folder = small_run
    results = run()
    results[part] = {"changed": "since"}
    (folder / "rate_distortion.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit, match=f"its {part} differs"):
        run("--only", "tec")


def test_speed_is_compared_at_equal_psnr(dn):
    scene = environment.Scene("here", "seasonal", L2A_BANDS, dn[:1])
    codecs = [codec for codec in speed.codecs() if codec.name != "tec"]
    rows = speed.measure(scene, 42, codecs, repeats=1)
    assert {row.codec for row in rows} == {"jpeg2000", "jpegxl"}
    for row in rows:
        assert row.psnr == pytest.approx(42, abs=speed.ACCEPTED)
        assert row.encode_mb_s > 0


def test_a_psnr_out_of_reach_gives_no_row(dn, capsys):
    scene = environment.Scene("here", "seasonal", L2A_BANDS, dn[:1])
    codecs = [codec for codec in speed.codecs() if codec.name == "jpegxl"]
    assert speed.measure(scene, 95, codecs, repeats=1) == []
    assert "does not meet 95 dB" in capsys.readouterr().out


@pytest.mark.skipif(
    not environment.DATA.is_dir(), reason="needs ../shared/data/eval beside the checkout"
)
def test_jpeg2000_agrees_with_the_shared_baselines():
    scene = next(s for s in environment.scenes(environment.DATA) if s.name == "0080717")
    size, decoded = classical.jpeg2000(scene.dn, 60)
    assert metrics.bpppb(size, scene.dn.shape) == pytest.approx(0.38612, rel=0.03)
    assert metrics.psnr(scene.dn, decoded) == pytest.approx(42.769, abs=0.1)


def test_the_benchmark_page_says_what_the_results_say(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report.py", "--check"])
    assert report.main() == 0, "run python benchmarks/report.py and commit docs/benchmarks.md"
