"""Quality and rate measures, in plain numpy.

Every measure takes a reference and a decoded array of the same shape in digital numbers
(DN), bands on axis -3 and pixels on the last two axes: ``(time, band, y, x)`` or
``(band, y, x)``. PSNR and SSIM always clip both sides to 0-10,000 DN (reflectance 0 to 1) and
take 10,000 as the peak, because numbers computed with different ranges can't be compared.

``valid`` is a boolean mask that broadcasts against the arrays (True = compare): pass
``reference != 0`` to leave nodata out. NaN is never compared. `without_gaps` replaces values that
only the decoded side lacks, so that they count as errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tec_zarr.errors import TecError
from tec_zarr.sentinel2 import DN_PER_REFLECTANCE

__all__ = [
    "PEAK",
    "MetricsError",
    "bd_rate",
    "bits_at",
    "bits_ratio",
    "bpppb",
    "dn_per_unit",
    "max_error",
    "mean_absolute_error",
    "mean_error",
    "measurable",
    "nodata_differs",
    "psnr",
    "psnr_per_band",
    "sam",
    "ssim",
    "without_gaps",
]

PEAK = 10_000.0
"""Peak signal and upper clipping bound in DN: reflectance 1."""

MEASURABLE_DN = (-2000.0, 65535.0)
"""Floats outside this range of DN are fill values. Baseline 04.00 has DN down to -1000."""

Curve = Sequence[tuple[float, float]]
"""A rate-distortion curve: ``(bits, psnr)`` points in any order."""


class MetricsError(TecError):
    """Arrays or curves that can't be compared."""


def psnr(reference: ArrayLike, decoded: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Peak signal-to-noise ratio over all dates, bands and pixels together, in dB.

    ``10 log10(10000**2 / mean((clip(reference) - clip(decoded))**2))`` with both sides
    clipped to 0-10,000 DN: the definition of TerraCodec's evaluation (its ``10k`` range).

    Parameters
    ----------
    reference, decoded : array_like
        DN, same shape.
    valid : array_like of bool, optional
        Pixels to compare; all by default.

    Returns
    -------
    float
        ``inf`` for identical arrays, ``nan`` when nothing is valid.

    Raises
    ------
    MetricsError
        If the shapes differ.
    """
    error, use = _clipped_error(reference, decoded, valid)
    return _decibel(float(np.mean(error[use] ** 2)) if use.any() else np.nan)


def psnr_per_band(
    reference: ArrayLike, decoded: ArrayLike, valid: ArrayLike | None = None
) -> NDArray[np.float64]:
    """`psnr` of each band over all its dates and pixels, in dB, shape ``(band,)``."""
    error, use = _clipped_error(reference, decoded, valid)
    return np.array(
        [
            _decibel(np.mean(e[u] ** 2) if u.any() else np.nan)
            for e, u in zip(_by_band(error), _by_band(use), strict=True)
        ]
    )


def max_error(
    reference: ArrayLike, decoded: ArrayLike, valid: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Largest absolute difference of each band in DN, unclipped, shape ``(band,)``."""
    return _reduce_bands(np.abs, np.max, reference, decoded, valid)


def mean_error(
    reference: ArrayLike, decoded: ArrayLike, valid: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Mean of ``decoded - reference`` (the bias) of each band in DN, shape ``(band,)``."""
    return _reduce_bands(np.asarray, np.mean, reference, decoded, valid)


def mean_absolute_error(
    reference: ArrayLike, decoded: ArrayLike, valid: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Mean absolute difference of each band in DN, unclipped, shape ``(band,)``."""
    return _reduce_bands(np.abs, np.mean, reference, decoded, valid)


def ssim(
    reference: ArrayLike, decoded: ArrayLike, valid: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Structural similarity of each band, averaged over its dates, shape ``(band,)``.

    Wang et al. (2004): an 11x11 Gaussian window of standard deviation 1.5, K1 = 0.01,
    K2 = 0.03, dynamic range 10,000 DN, both sides clipped to it. Windows that leave the
    image are not counted; with ``valid``, neither are windows that touch an invalid pixel.

    Parameters
    ----------
    reference, decoded : array_like
        DN, same shape, at least 11 by 11 pixels.
    valid : array_like of bool, optional
        Pixels to compare; all by default.

    Returns
    -------
    ndarray of float64
        1 for identical bands, ``nan`` for a band without one valid window.

    Raises
    ------
    MetricsError
        If the shapes differ or the image is smaller than the window.
    """
    x, y, use = _pair(reference, decoded, valid)
    if min(x.shape[-2:]) < _WINDOW.size:
        raise MetricsError(
            f"SSIM needs at least {_WINDOW.size} x {_WINDOW.size} pixels, got {x.shape[-2:]}."
        )
    x = np.where(use, np.clip(x, 0, PEAK), 0)
    y = np.where(use, np.clip(y, 0, PEAK), 0)
    mx, my = _blur(x), _blur(y)
    vx, vy = _blur(x * x) - mx * mx, _blur(y * y) - my * my
    cov = _blur(x * y) - mx * my
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    score = ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    whole = _blur(use.astype(np.float64)) > 1 - 1e-9
    return np.array(
        [
            s[w].mean() if w.any() else np.nan
            for s, w in zip(_by_band(score), _by_band(whole), strict=True)
        ]
    )


def sam(reference: ArrayLike, decoded: ArrayLike, valid: ArrayLike | None = None) -> float:
    """Spectral angle between original and decoded spectra, averaged over pixels, in degrees.

    ``arccos(<r, d> / (|r| |d|))`` over the bands of each pixel (Kruse et al. 1993), in
    unclipped DN. A pixel counts when all its bands are valid and neither spectrum is zero.
    """
    x, y, use = _pair(reference, decoded, valid)
    x, y = np.where(use, x, 0), np.where(use, y, 0)
    norms = np.sqrt((x * x).sum(axis=-3) * (y * y).sum(axis=-3))
    pixels = use.all(axis=-3) & (norms > 0)
    if not pixels.any():
        return float("nan")
    cosine = (x * y).sum(axis=-3)[pixels] / norms[pixels]
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean())


def measurable(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the values that can be DN or reflectance, as a 1-D array.

    It leaves out 0, NaN and fill values such as 1e20 or -9999.
    """
    low, high = MEASURABLE_DN
    return values[(values > low) & (values < high) & (values != 0)]


def dn_per_unit(*floats: NDArray[np.floating]) -> float:
    """Return the factor that turns floats into DN: 1 for DN, 10,000 for reflectance.

    The median of the measurable values decides, in the first array that has any. Floats whose
    median times 10,000 does not fit into uint16 are DN. The codec uses the same limit to refuse DN
    that are declared as reflectance.
    """
    for values in floats:
        known = measurable(values)
        if known.size:
            is_dn = np.median(known) > np.iinfo(np.uint16).max / DN_PER_REFLECTANCE
            return 1.0 if is_dn else float(DN_PER_REFLECTANCE)
    return float(DN_PER_REFLECTANCE)


def nodata_differs(reference: NDArray, decoded: NDArray) -> NDArray[np.bool_]:
    """Return True for each sample that is finite on one side only."""
    return np.isfinite(reference) != np.isfinite(decoded)


def without_gaps(reference: NDArray, decoded: NDArray) -> NDArray:
    """Return ``decoded`` with 0 DN at samples that only the reference has.

    So a lost sample counts as an error as large as its original value.
    """
    return np.where(np.isfinite(reference) & ~np.isfinite(decoded), 0, decoded)


def bpppb(n_bytes: int, shape: Sequence[int]) -> float:
    """Bits per pixel per band: ``8 * n_bytes / prod(shape)``, dates and bands in ``shape``."""
    return 8.0 * n_bytes / float(np.prod(shape, dtype=np.float64))


def bits_at(curve: Curve, psnrs: ArrayLike) -> NDArray[np.float64]:
    """Bits at given PSNRs, by linear interpolation of log(bits) over PSNR.

    Parameters
    ----------
    curve : sequence of (bits, psnr)
        Measured points. A point that needs more bits than another one of equal or better PSNR
        is dropped.
    psnrs : array_like
        PSNRs in dB.

    Returns
    -------
    ndarray of float64
        ``nan`` outside the measured range: nothing is extrapolated.
    """
    bits, quality = _monotone(curve)
    wanted = np.atleast_1d(np.asarray(psnrs, np.float64))
    return np.exp(np.interp(wanted, quality, np.log(bits), left=np.nan, right=np.nan))


def bits_ratio(curve_a: Curve, curve_b: Curve, psnrs: ArrayLike) -> float:
    """Geometric mean of ``bits_a / bits_b`` at equal PSNR.

    Below 1, codec a needs fewer bits. PSNRs that one of the curves does not reach are left
    out; ``nan`` when none is left. Interpolation as in `bits_at`.
    """
    log_ratio = np.log(bits_at(curve_a, psnrs)) - np.log(bits_at(curve_b, psnrs))
    known = np.isfinite(log_ratio)
    return float(np.exp(log_ratio[known].mean())) if known.any() else float("nan")


def bd_rate(curve_a: Curve, curve_b: Curve) -> float:
    """Bjontegaard delta rate of codec a against codec b, in percent.

    The mean difference of log(bits) over the PSNRs that both curves cover, each curve
    interpolated by a monotone piecewise cubic (Fritsch and Carlson 1980), as in current
    MPEG practice. -30 means that a needs 30 % fewer bits on average; ``nan`` when the
    curves share no PSNR.
    """
    curves = [_monotone(curve) for curve in (curve_a, curve_b)]
    low = max(quality[0] for _, quality in curves)
    high = min(quality[-1] for _, quality in curves)
    if low >= high or any(quality.size < 2 for _, quality in curves):
        return float("nan")
    grid = np.linspace(low, high, 1001)
    a, b = (_pchip(quality, np.log(bits), grid) for bits, quality in curves)
    return float(100 * np.expm1(np.trapezoid(a - b, grid) / (high - low)))


def _window(size: int = 11, sigma: float = 1.5) -> NDArray[np.float64]:
    offset = np.arange(size) - size // 2
    weight = np.exp(-0.5 * (offset / sigma) ** 2)
    return weight / weight.sum()


_WINDOW = _window()


def _blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Separable Gaussian over the last two axes, at positions where the window fits."""
    for axis in (-1, -2):
        length = x.shape[axis] - _WINDOW.size + 1
        moved = np.moveaxis(x, axis, -1)
        x = np.moveaxis(
            sum(w * moved[..., k : k + length] for k, w in enumerate(_WINDOW)), -1, axis
        )
    return x


def _pair(
    reference: ArrayLike, decoded: ArrayLike, valid: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Both arrays in float64 (so that uint16 differences can't wrap) and the mask to compare."""
    x, y = np.asarray(reference, np.float64), np.asarray(decoded, np.float64)
    if x.shape != y.shape or x.ndim < 3:
        raise MetricsError(
            f"Can't compare shapes {x.shape} and {y.shape}: both must be (..., band, y, x)."
        )
    use = np.isfinite(x) & np.isfinite(y)
    if valid is not None:
        use &= np.broadcast_to(np.asarray(valid, bool), x.shape)
    return x, y, use


def _clipped_error(
    reference: ArrayLike, decoded: ArrayLike, valid: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    x, y, use = _pair(reference, decoded, valid)
    return np.clip(y, 0, PEAK) - np.clip(x, 0, PEAK), use


def _by_band(x: NDArray) -> NDArray:
    return np.moveaxis(x, -3, 0).reshape(x.shape[-3], -1)


def _reduce_bands(
    transform: Callable[[NDArray], NDArray],
    reduce: Callable[[NDArray], float],
    reference: ArrayLike,
    decoded: ArrayLike,
    valid: ArrayLike | None,
) -> NDArray[np.float64]:
    x, y, use = _pair(reference, decoded, valid)
    return np.array(
        [
            reduce(transform(e[u])) if u.any() else np.nan
            for e, u in zip(_by_band(y - x), _by_band(use), strict=True)
        ]
    )


def _decibel(mse: float) -> float:
    if mse == 0:
        return float("inf")
    return float(10 * np.log10(PEAK**2 / mse))


def _monotone(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bits and PSNR of a curve without the points that `bits_at` drops, both increasing."""
    kept: list[tuple[float, float]] = []
    for bits, quality in sorted(curve):
        if np.isfinite(quality) and bits > 0 and (not kept or quality > kept[-1][1]):
            kept.append((bits, quality))
    if not kept:
        raise MetricsError("The rate-distortion curve has no point with bits > 0 and a PSNR.")
    points = np.array(kept, np.float64)
    return points[:, 0], points[:, 1]


def _pchip(
    x: NDArray[np.float64], y: NDArray[np.float64], at: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Monotone cubic Hermite interpolation with Fritsch-Butland slopes (as scipy's)."""
    h, slope = np.diff(x), np.diff(y) / np.diff(x)
    d = np.zeros_like(y)
    same = slope[:-1] * slope[1:] > 0
    w1, w2 = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = (w1 + w2) / (w1 / slope[:-1] + w2 / slope[1:])
    d[1:-1] = np.where(same, inner, 0)
    d[0] = _end_slope(h, slope)
    d[-1] = _end_slope(h[::-1], slope[::-1])
    k = np.clip(np.searchsorted(x, at, side="right") - 1, 0, x.size - 2)
    t = (at - x[k]) / h[k]
    return (
        y[k] * (1 + 2 * t) * (1 - t) ** 2
        + h[k] * d[k] * t * (1 - t) ** 2
        + y[k + 1] * t**2 * (3 - 2 * t)
        + h[k] * d[k + 1] * t**2 * (t - 1)
    )


def _end_slope(h: NDArray[np.float64], slope: NDArray[np.float64]) -> float:
    """One-sided three-point slope at the first point, limited to stay monotone."""
    if h.size == 1:
        return slope[0]
    end = ((2 * h[0] + h[1]) * slope[0] - h[0] * slope[1]) / (h[0] + h[1])
    if end * slope[0] <= 0:
        return 0.0
    if slope[0] * slope[1] <= 0 and abs(end) > 3 * abs(slope[0]):
        return 3 * slope[0]
    return end
