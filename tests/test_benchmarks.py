"""The benchmarks tell the truth: bytes are streams that decode, ratios are what they say."""

import csv
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

imagecodecs = pytest.importorskip("imagecodecs")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import classical  # noqa: E402
import downstream  # noqa: E402
import environment  # noqa: E402
import landcover  # noqa: E402
import rate_distortion  # noqa: E402
import report  # noqa: E402
import run  # noqa: E402
import speed  # noqa: E402
import system  # noqa: E402

from tec_zarr import metrics  # noqa: E402
from tec_zarr.cubes import synthetic  # noqa: E402
from tec_zarr.sentinel2 import L2A_BANDS  # noqa: E402


@pytest.fixture(scope="module")
def dn():
    cube = synthetic.cube(dates=2, size=64, seed=1, nodata_edge=False, resampling="bilinear")
    return np.ascontiguousarray(cube.values)


@pytest.mark.parametrize("codec", classical.CODECS, ids=lambda codec: codec.name)
def test_more_bytes_buy_a_better_cube(codec, dn):
    if "x265" in codec.name or "hevc" in codec.name:
        pytest.importorskip("av")
    if "av1" in codec.name or "vvc" in codec.name or codec.name == "avif":
        pytest.importorskip("imageio_ffmpeg")
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
    monkeypatch.setattr(rate_distortion, "_tec_identity", lambda codec: {})

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
    codecs = [codec for codec in speed.codecs() if not codec.name.startswith("tec")]
    rows = speed.measure(scene, 42, codecs, repeats=1)
    assert {row.codec for row in rows} == {"jpeg2000", "jpegxl", "klt-jpeg2000-joint", "sz3"}
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


def test_quality_can_be_measured_by_band_land_cover_ssim_and_angle(dn):
    scene = environment.Scene("here", "seasonal", L2A_BANDS, dn)
    codec = rate_distortion.Contender(
        "jpeg2000", "", (50.0, 58.0), lambda scene, level: classical.jpeg2000(scene.dn, level)
    )
    poor, good = rate_distortion.measure(codec, [scene])
    assert set(poor.psnr_of_band) == set(L2A_BANDS)
    assert set(poor.psnr_of_cover) <= set(landcover.COVERS)
    assert poor.psnr_of_cover
    for before, after in ((poor.psnr_of_band, good.psnr_of_band),
                          (poor.psnr_of_cover, good.psnr_of_cover)):  # fmt: skip
        assert all(before[name] < after[name] for name in before)
    assert 0 < poor.ssim < good.ssim < 1
    assert poor.sam > good.sam > 0


def test_a_temporal_model_is_one_more_row_and_left_out_where_it_is_not_installed(dn):
    scene = environment.Scene("here", "seasonal", L2A_BANDS, dn)
    named = {codec.name: codec for codec in rate_distortion.contenders(quick=False)}
    single = replace(scene, kind="single date")
    assert list(rate_distortion.measure(named["tec-tt"], [single])) == []
    size, decoded = rate_distortion.code_tec(scene, 4.0, dates=2)
    apart, _ = rate_distortion.code_tec(scene, 4.0, dates=1)
    assert decoded.shape == scene.dn.shape
    assert size < apart  # one header instead of two


def test_a_frozen_tool_agrees_with_itself_and_less_with_a_poor_copy(dn):
    pytest.importorskip("sklearn")
    scene = environment.Scene("here", "seasonal", L2A_BANDS, dn)
    tools = downstream.Tools([scene])
    same = tools.compare(scene, dn)
    assert same["land_cover_agreement"] == 1
    assert same["change_iou"] == 1
    _, poor = classical.jpeg2000(dn, 46)
    assert tools.compare(scene, poor)["land_cover_agreement"] < 1
    assert downstream.fidelity(scene, 1, dn)["ndvi_mean"] == 0
    assert downstream.fidelity(scene, 1, poor)["ndvi_mean"] > 0


def test_a_season_that_was_put_in_is_found():
    days = np.arange(0, 730, 20.0)
    ndvi = 0.4 + 0.3 * np.cos(2 * np.pi * (days - 150) / 365.25)
    bands = ("B02", "B04", "B08")
    dn = np.full((len(days), 3, 4, 4), 500.0)
    dn[:, 2] = (500 * (1 + ndvi) / (1 - ndvi))[:, None, None]
    scene = environment.Scene("here", "series", bands, np.rint(dn).astype(np.uint16))
    clear = np.ones((len(days), 4, 4), bool)
    peak, amplitude, told = downstream._season(scene.dn, bands, days, clear)
    assert told.all()
    np.testing.assert_allclose(peak, 150, atol=2)
    np.testing.assert_allclose(amplitude, 0.3, atol=0.01)
    same = downstream.compare_phenology(scene, days, scene.dn)
    assert same["peak_day_error_median"] == same["season_amplitude_error"] == 0


def test_otsu_separates_two_heaps():
    rng = np.random.default_rng(0)
    heaps = np.concatenate([rng.normal(10, 1, 500), rng.normal(50, 1, 100)])
    assert (heaps > downstream.otsu(heaps)).sum() == pytest.approx(100, abs=2)


def test_the_search_for_a_size_meets_it(dn):
    size, decoded = downstream.at_size(classical.jpeg2000, dn, 20_000, 40.0, 72.0)
    assert size == pytest.approx(20_000, rel=0.15)
    assert decoded.shape == dn.shape


def test_bytes_of_a_small_read_are_counted(tmp_path):
    import zarr

    values = np.random.default_rng(0).integers(0, 9999, (2, 4, 256, 256)).astype(np.uint16)
    array = zarr.create_array(
        tmp_path / "a.zarr", name="reflectance", shape=values.shape, dtype="uint16",
        chunks=(1, 4, 128, 128), compressors=None,
    )  # fmt: skip
    array[:] = values
    read = system.bytes_read(str(tmp_path / "a.zarr"))
    assert read["everything"] == values.nbytes
    assert read["one date"] == values[1].nbytes
    assert read["64 x 64 window, all dates and bands"] == 2 * 4 * 4 * 128 * 128 * 2


def test_the_pages_say_what_the_results_say(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report.py", "--check"])
    assert report.main() == 0, "run python benchmarks/report.py and commit what it writes"


def test_a_changed_number_is_noticed(monkeypatch, tmp_path, capsys):
    """The check fails when a page, or the README, says what the results do not."""
    for path, text in report.made().items():
        changed = tmp_path / path.name
        digit = next(c for c in text if c in "123456789")
        changed.write_text(text.replace(digit, "0", 1))
        assert changed.read_text() != text
    written = {tmp_path / path.name: text for path, text in report.made().items()}
    monkeypatch.setattr(report, "made", lambda: written)
    monkeypatch.setattr(sys, "argv", ["report.py", "--check"])
    assert report.main() == 1
    assert capsys.readouterr().out.count("is not what the results say") == len(written)
    monkeypatch.setattr(sys, "argv", ["report.py"])
    assert report.main() == 0
    assert all(path.read_text() == text for path, text in written.items())


def test_the_readme_has_no_rate_or_speed_outside_the_part_that_is_made():
    """A factor, a share or a time that nobody measured cannot be written into the README."""
    text = (ROOT / "README.md").read_text()
    typed = text.split(report.BEGIN)[0] + text.split(report.END)[1]
    prose = re.sub(r"```.*?```", "", typed, flags=re.S)
    assert re.findall(r"\d (?:ms|MB/s|times (?:faster|slower|smaller))|\d x \|", prose) == []


def test_the_readme_says_of_other_machines_what_was_measured():
    """One DN at most, in two or three pixels of ten thousand."""
    settings = report.load("exactness")["matrix"]["settings"]
    differences = [row for s in settings for row in s["pixels_that_differ"].values()]
    assert max(row["largest_dn"] for row in differences) <= 1
    assert 1e-6 < max(row["share"] for row in differences) < 3e-4


def test_what_was_not_measured_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    page = report.made()[report.PAGE]
    assert page.count("Not measured here") == 7
    assert "no full run yet" in page


def test_what_is_not_of_the_last_full_run_is_said(monkeypatch):
    run = {"date": "now", "commit": "a" * 40, "machine": {"cores": 2}, "seconds": 600.0,
           "weights_sha256": {"tec-s2": "b" * 64},
           "steps": {"speed": {"ok": True, "seconds": 60.0},
                     "system": {"ok": False, "seconds": 6.0}}}  # fmt: skip
    monkeypatch.setattr(report, "load", lambda name: run if name == "run" else None)
    assert "Failed in it: system" in report.last_run()
    assert report.origin({"commit": "a" * 40}) == ""
    assert "commit cccccccccccc" in report.origin({"commit": "c" * 40})
    assert "Not of the last" in report.origin(
        {"measured": {"x": {"commit": "a" * 40}, "y": {"commit": "d" * 40}}}
    )


def test_a_step_that_fails_costs_the_others_nothing_and_is_told(monkeypatch, tmp_path, capsys):
    for name, body in (
        ("good", "import pathlib, sys; pathlib.Path(sys.argv[-1], 'good').write_text('')"),
        ("bad", "raise SystemExit('what went wrong')"),
    ):
        (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "QUICK", tmp_path)
    monkeypatch.setattr(run, "LOGS", tmp_path / "logs")
    steps = (run.Step("bad", 1, quick=()), run.Step("good", 2, quick=()))
    monkeypatch.setattr(run, "STEPS", steps)
    monkeypatch.setattr(run, "commit", lambda: "this")
    assert run.main(["--quick"]) == 1
    assert (tmp_path / "good").exists()
    record = json.loads((tmp_path / "run_quick.json").read_text())
    assert {name: step["ok"] for name, step in record["steps"].items()} == {
        "bad": False,
        "good": True,
    }
    assert "what went wrong" in capsys.readouterr().out

    (tmp_path / "bad.py").write_text("")  # repaired; measured again by itself
    assert run.main(["--quick", "--only", "bad"]) == 0
    again = json.loads((tmp_path / "run_quick.json").read_text())
    assert again["steps"]["bad"]["ok"]
    assert again["seconds"] == record["seconds"]
    (tmp_path / "run_quick.json").write_text(json.dumps({**record, "commit": "another"}))
    run.main(["--quick", "--only", "bad"])
    assert not json.loads((tmp_path / "run_quick.json").read_text())["steps"]["bad"]["ok"]


def test_a_codec_that_fails_is_named_and_the_others_are_written(small_run, monkeypatch, capsys):
    run, folder = small_run

    def broken(scene, level):
        raise RuntimeError("no such luck")

    chosen = [*rate_distortion.contenders(False),
              rate_distortion.Contender("broken", "", (1.0,), broken)]  # fmt: skip
    monkeypatch.setattr(rate_distortion, "contenders", lambda quick: chosen)
    with pytest.raises(SystemExit, match="failed: broken"):
        run()
    results = json.loads((folder / "rate_distortion.json").read_text())
    assert list(results["measured"]) == ["tec", "jpeg2000"]
    assert "no such luck" in capsys.readouterr().err


def test_the_demo_in_the_readme_is_what_it_prints(monkeypatch):
    printed = ["      here", "----  ----", "cube  x", "", "band  PSNR", "----  ----", "B01 1"]
    printed += ["B02 2", "B03 3", "B04 4", "B08 8", "all 9", "", "picture: p.png"]
    monkeypatch.setattr(report, "load", lambda name: {"printed": printed})
    shown = report.demo().splitlines()
    assert shown[0] == shown[-1] == "```"
    assert shown[-6:-1] == ["...", "B02 2", "...", "B08 8", "all 9"]
    assert shown[1:4] == ["      here", "----  ----", "cube  x"]
