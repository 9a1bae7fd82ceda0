import math

import numpy as np
import pytest

from tec_zarr import metrics


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    reference = rng.integers(200, 6000, (2, 3, 24, 20)).astype(np.uint16)
    noise = rng.integers(-40, 41, reference.shape)
    return reference, (reference + noise).astype(np.uint16)


def test_psnr_of_a_known_error():
    reference = np.full((1, 2, 8, 8), 1000, np.uint16)
    assert metrics.psnr(reference, reference + np.uint16(100)) == pytest.approx(40.0)
    assert metrics.psnr(reference, reference) == math.inf


def test_uint16_differences_do_not_wrap():
    reference = np.full((1, 1, 8, 8), 1000, np.uint16)
    assert metrics.psnr(reference, reference - np.uint16(100)) == pytest.approx(40.0)
    assert metrics.mean_error(reference, reference - np.uint16(100)) == pytest.approx(-100)


def test_values_beyond_the_peak_count_as_the_peak():
    reference = np.full((1, 1, 8, 8), 12_000, np.uint16)
    assert metrics.psnr(reference, np.full_like(reference, 16_000)) == math.inf
    assert metrics.max_error(reference, np.full_like(reference, 16_000)) == 4000


def test_masked_pixels_do_not_count(pair):
    reference, decoded = pair
    spoiled = decoded.copy()
    valid = np.ones((1, 1, 24, 20), bool)
    valid[..., :5] = False
    spoiled[..., :5] = 9999
    for measure in (metrics.psnr, metrics.sam):
        assert measure(reference, spoiled, valid) == measure(reference, decoded, valid)
    for measure in (metrics.psnr_per_band, metrics.max_error, metrics.mean_error, metrics.ssim):
        np.testing.assert_array_equal(
            measure(reference, spoiled, valid), measure(reference, decoded, valid)
        )
    assert math.isnan(metrics.psnr(reference, decoded, np.zeros_like(valid)))


def test_nan_does_not_count(pair):
    reference, decoded = (a.astype(np.float32) for a in pair)
    holed = reference.copy()
    holed[:, :, 3, 4] = np.nan
    valid = np.isfinite(holed)
    assert metrics.psnr(holed, decoded) == metrics.psnr(reference, decoded, valid)


def test_what_the_decoded_side_has_lost_counts_as_nothing_there(pair):
    reference = pair[0].astype(np.float32)
    reference[0, 0, 0, 0] = np.nan
    decoded = reference.copy()
    decoded[1, 2, 3, 4] = np.nan
    decoded[0, 0, 0, 0] = 7
    assert metrics.nodata_differs(reference, decoded).sum() == 2
    filled = metrics.without_gaps(reference, decoded)
    assert metrics.max_error(reference, filled)[2] == reference[1, 2, 3, 4]
    assert metrics.psnr(reference, decoded) == math.inf > metrics.psnr(reference, filled)


@pytest.mark.parametrize(("value", "unit"), [(0.3, 10_000), (1.6, 10_000), (7, 1), (3000, 1)])
def test_floats_are_dn_where_they_are_plainly_no_reflectance(value, unit):
    floats = np.array([np.nan, 0, 0, 0, value, value], np.float32)
    assert metrics.dn_per_unit(floats) == unit
    assert metrics.dn_per_unit(np.zeros(3, np.float32), floats) == unit


def test_per_band_measures_agree_with_the_whole(pair):
    reference, decoded = pair
    per_band = metrics.psnr_per_band(reference, decoded)
    assert per_band.shape == (3,)
    assert metrics.psnr(reference, decoded) == pytest.approx(
        -10 * np.log10(np.mean(10 ** (-per_band / 10)))
    )
    one = metrics.psnr(reference[:, 1:2], decoded[:, 1:2])
    assert per_band[1] == pytest.approx(one)
    assert metrics.max_error(reference, decoded).max() == 40
    assert (metrics.mean_absolute_error(reference, decoded) > 15).all()


def test_ssim_matches_the_formula_on_one_window():
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 9000, (2, 1, 11, 11))
    g = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    w = np.outer(g, g) / np.outer(g, g).sum()
    mx, my = (w * x).sum(), (w * y).sum()
    vx, vy = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum()
    cov = (w * (x - mx) * (y - my)).sum()
    c1, c2 = 100.0**2, 300.0**2
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert metrics.ssim(x, y) == pytest.approx(expected)


def test_ssim_ranks_noise(pair):
    reference, decoded = pair
    worse = np.clip(reference + 5 * (decoded.astype(int) - reference), 0, 65535)
    assert metrics.ssim(reference, reference) == pytest.approx(1)
    assert (metrics.ssim(reference, decoded) > metrics.ssim(reference, worse)).all()
    with pytest.raises(metrics.MetricsError, match="11 x 11"):
        metrics.ssim(reference[..., :10], decoded[..., :10])


def test_spectral_angle_sees_direction_not_brightness():
    x = np.zeros((1, 2, 4, 4))
    x[:, 0] = 1000
    y = x.copy()
    y[:, 1] = 1000
    assert metrics.sam(x, 3 * x) == pytest.approx(0, abs=1e-5)
    assert metrics.sam(x, y) == pytest.approx(45)


def test_shapes_must_agree(pair):
    reference, decoded = pair
    with pytest.raises(metrics.MetricsError, match=r"\(2, 3, 24, 20\)"):
        metrics.psnr(reference, decoded[:1])


def test_bpppb_counts_dates_and_bands():
    assert metrics.bpppb(12 * 64 * 64 // 8, (1, 12, 64, 64)) == 1.0


def _curve(scale):
    return [(scale * 2 ** ((quality - 40) / 3), quality) for quality in (36, 39, 41, 44, 47)]


def test_half_the_bits_is_half_by_every_measure():
    psnrs = np.arange(36, 46.01, 0.5)
    assert metrics.bits_ratio(_curve(0.1), _curve(0.2), psnrs) == pytest.approx(0.5)
    assert metrics.bd_rate(_curve(0.1), _curve(0.2)) == pytest.approx(-50)
    assert metrics.bd_rate(_curve(0.2), _curve(0.1)) == pytest.approx(100)
    assert metrics.bits_at(_curve(0.2), 40)[0] == pytest.approx(0.2)


def test_nothing_is_extrapolated():
    low, high = [(0.1, 30.0), (0.2, 33.0)], [(0.1, 40.0), (0.2, 43.0)]
    assert math.isnan(metrics.bits_at(low, 35)[0])
    assert math.isnan(metrics.bits_ratio(low, high, [36, 38]))
    assert math.isnan(metrics.bd_rate(low, high))


def test_a_point_that_wastes_bits_is_dropped():
    curve = [*_curve(0.1), (0.5, 38.0)]
    assert metrics.bits_at(curve, 43.0) == pytest.approx(metrics.bits_at(_curve(0.1), 43.0))


def test_bd_rate_agrees_with_scipy_pchip():
    interpolate = pytest.importorskip("scipy.interpolate")
    a = [(0.031, 35.8), (0.07, 38.4), (0.16, 41.2), (0.33, 44.9), (0.61, 48.0)]
    b = [(0.05, 35.1), (0.12, 39.9), (0.21, 41.0), (0.5, 46.1), (0.7, 47.0)]
    splines = [
        interpolate.PchipInterpolator([p for _, p in c], np.log([r for r, _ in c])) for c in (a, b)
    ]
    low, high = 35.8, 47.0
    mean = (splines[0].integrate(low, high) - splines[1].integrate(low, high)) / (high - low)
    assert metrics.bd_rate(a, b) == pytest.approx(100 * np.expm1(mean), abs=1e-3)
