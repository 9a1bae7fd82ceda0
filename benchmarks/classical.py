"""The classical codecs TEC is compared with: one function a codec, all bytes counted.

Every function takes a cube, uint16 DN ``(time, band, y, x)``, and one rate parameter, and
returns the number of bytes a store would hold and the decoded cube (uint16 DN). Streams are
really decoded: nothing is estimated.

Two settings appear twice. The plain name is the setting of ``../shared/baselines.md`` (so
that numbers can be checked against it), the ``-tuned`` / ``-joint`` name is the best setting
found, and the one a claim must hold against.

AV1 and VVC run in the ffmpeg that the package ``imageio-ffmpeg`` (0.8 or newer) carries: no
wheel of PyAV or imagecodecs has an encoder of VVC, or one of AV1 for 12 bit over time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import imagecodecs
import numcodecs
import numpy as np
from numpy.typing import NDArray
from on_grids import (
    decode_htj2k,
    encode_htj2k,
    htj2k_on_grids,
    jpeg2000_on_grids,
    jpegxl_on_grids,
    klt_jpeg2000_on_grids,
    klt_vvc_on_grids,
    klt_x265_on_grids,
)
from video import PEAK10, PEAK12, TUNED, ffmpeg, klt_vvc, klt_x265_with, vvc, x265

from tec_zarr import metrics
from tec_zarr.compare.classical import (
    KLT,
    MIDDLE,
    Coded,
    Cube,
    centred_uint16,
    jpeg2000,
    jpegxl,
    klt_jpeg2000_joint,
    planes,
    to_dn,
)


@dataclass(frozen=True)
class Classical:
    """A codec with the rate parameters that cover about 34-48 dB on Sentinel-2 L2A."""

    name: str
    setting: str
    levels: tuple[float, ...]
    code: Callable[[Cube, float], Coded]
    over_time: bool = False
    """Without several dates there is nothing that this codec could do better than others."""


def htj2k(cube: Cube, level: float) -> Coded:
    """OpenJPH (JPEG 2000 part 15): one codestream per date and band, 9-7 wavelet.

    ``level`` is the quantisation step as a share of 65,535; OpenJPH has no other rate control.
    """
    streams = encode_htj2k(cube, level)
    return sum(map(len, streams)), decode_htj2k(streams, cube.shape)


def webp(cube: Cube, level: float) -> Coded:
    """libwebp per date and band, method 6, quality ``level``; 8 bits are all it has."""
    scale = max(float(cube.max()), 1.0) / 255
    size, decoded = 2, np.empty(planes(cube).shape)
    for index, plane in enumerate(planes(cube)):
        grey = np.rint(plane / scale).astype(np.uint8)
        data = imagecodecs.webp_encode(
            np.stack([grey] * 3, axis=-1), level=level, lossless=False, method=6
        )
        size += len(data)
        decoded[index] = imagecodecs.webp_decode(data)[..., 1] * scale
    return size, to_dn(decoded.reshape(cube.shape))


def avif(cube: Cube, level: float) -> Coded:
    """libaom's AV1 still pictures per date and band, 12-bit 4:0:0, one DN scale.

    What AVIF holds, without its container of about 300 bytes a picture. ``level`` is crf.
    """
    frames = cube.reshape(-1, *cube.shape[-2:])
    return _av1(cube, [frames], ["-usage", "allintra", "-crf", f"{level:g}", "-g", "0"])


def av1_time(cube: Cube, level: float) -> Coded:
    """libaom's AV1 12-bit 4:0:0 over the dates, per band on one DN scale; ``level`` is crf."""
    streams = [cube[:, band] for band in range(cube.shape[1])]
    size, decoded = _av1(cube, streams, ["-crf", f"{level:g}", "-g", "999"])
    shape = (cube.shape[1], cube.shape[0], *cube.shape[2:])
    return size, np.ascontiguousarray(decoded.reshape(shape).swapaxes(0, 1))


def vvc_time(cube: Cube, level: float) -> Coded:
    """vvenc 10-bit over the dates, per band on one DN scale; ``level`` is QP."""
    scale = max(float(cube.max()), metrics.PEAK) / PEAK10
    size, decoded = 2, np.empty(cube.shape)
    for band in range(cube.shape[1]):
        data, decoded[:, band] = vvc(cube[:, band] / scale, level)
        size += data
    return size, to_dn(decoded * scale)


def sz3(cube: Cube, level: float) -> Coded:
    """SZ3 per date and band, absolute bound ``level`` DN (better than over bands or dates)."""
    return _each(
        planes(cube),
        cube.shape,
        lambda plane: imagecodecs.sz3_encode(plane.astype(np.float32), mode="abs", abs=level),
        lambda data: imagecodecs.sz3_decode(data, shape=cube.shape[-2:], dtype="f4"),
    )


def sperr(cube: Cube, level: float) -> Coded:
    """SPERR per date, three-dimensional over the bands, point-wise bound ``level`` DN."""
    return _each(
        cube,
        cube.shape,
        lambda date: imagecodecs.sperr_encode(date.astype(np.float32), level, mode="pwe"),
        imagecodecs.sperr_decode,
    )


def zfp(cube: Cube, level: float) -> Coded:
    """ZFP per date and band, fixed accuracy (better than over bands or dates)."""
    mode = imagecodecs.ZFP.MODE.FIXED_ACCURACY
    return _each(
        planes(cube),
        cube.shape,
        lambda plane: imagecodecs.zfp_encode(plane.astype(np.float32), level, mode=mode),
        imagecodecs.zfp_decode,
    )


def lerc(cube: Cube, level: float) -> Coded:
    """LERC per date and band, bound ``level`` DN."""
    return _each(
        planes(cube),
        cube.shape,
        lambda plane: imagecodecs.lerc_encode(np.ascontiguousarray(plane), level),
        imagecodecs.lerc_decode,
    )


def bitround_zstd(cube: Cube, level: float) -> Coded:
    """``level`` mantissa bits of float32, then Blosc zstd 9 with bitshuffle, per date and band."""
    rounded = imagecodecs.quantize_encode(cube.astype(np.float32), "bitround", int(level))
    return _blosc(rounded, cube.shape)


def quantize_zstd(cube: Cube, level: float) -> Coded:
    """Uniform steps of ``level`` DN, then Blosc zstd 9 with bitshuffle, per date and band."""
    size, steps = _blosc(np.rint(cube / level).astype(np.uint16), cube.shape)
    return size, to_dn(steps * level)


def hevc_time(cube: Cube, level: float) -> Coded:
    """x265 12-bit 4:0:0 over the dates, per band stretched to its range, preset slow.

    x265's defaults otherwise (psychovisual on, its 2 kB information message counted).
    """
    size, decoded = 0, np.empty(cube.shape)
    for band in range(cube.shape[1]):
        plane = cube[:, band].astype(np.float64)
        low, scale = plane.min(), max(float(np.ptp(plane)), 1.0) / PEAK12
        data, frames = x265(((plane - low) / scale)[:, None], f"qp={level:g}")
        size += data + 4  # low and high of the stretch, uint16 each
        decoded[:, band] = frames[:, 0] * scale + low
    return size, to_dn(decoded)


def hevc_time_tuned(cube: Cube, level: float) -> Coded:
    """x265 12-bit 4:0:0 over the dates, per band on one scale, tuned for squared error."""
    scale = max(float(cube.max()), 1.0) / PEAK12
    size, decoded = 2, np.empty(cube.shape)
    for band in range(cube.shape[1]):
        data, frames = x265((cube[:, band] / scale)[:, None], f"qp={level:g}:{TUNED}")
        size += data
        decoded[:, band] = frames[:, 0] * scale
    return size, to_dn(decoded)


def klt_jpeg2000(cube: Cube, level: float) -> Coded:
    """The cube's own KLT, then JPEG 2000 per component and date at one target error.

    ``level`` is the target RMSE in DN. Only the packets are counted (from SOD to before
    EOC): the about 150 bytes of codestream header per component are left out.
    """
    klt = KLT.of(cube)
    components = centred_uint16(klt.forward(cube))
    target = 20 * np.log10(65535 / level)
    size, decoded = klt.n_bytes, np.empty(components.shape)
    for index in np.ndindex(components.shape[:2]):
        data = imagecodecs.jpeg2k_encode(
            components[index], level=target, codecformat="J2K", reversible=False
        )
        size += len(data) - (data.index(b"\xff\x93") + 2) - 2
        decoded[index] = imagecodecs.jpeg2k_decode(data)
    return size, to_dn(klt.inverse(decoded - MIDDLE))


def klt_x265(cube: Cube, level: float) -> Coded:
    """The cube's own KLT, then x265 12-bit 4:4:4, three components a stream, psy off.

    What xarrayvideo does, with one scale for all components; x265's information message
    is counted.
    """
    return klt_x265_with(cube, f"qp={level:g}:psy-rd=0:psy-rdoq=0")


def klt_x265_tuned(cube: Cube, level: float) -> Coded:
    """`klt_x265` tuned for squared error, without x265's information message."""
    return klt_x265_with(cube, f"qp={level:g}:{TUNED}")


_SLOPES = tuple(np.geomspace(100.0, 1e6, 24).tolist())
"""Squared DN that a bit is worth."""

CODECS: tuple[Classical, ...] = (
    Classical(
        "jpeg2000",
        "OpenJPEG, bare codestream per band and date, 9-7",
        (50, 52, 54, 56, 58, 60, 62, 64),
        jpeg2000,
    ),
    Classical(
        "jpegxl",
        "libjxl, per band and date, effort 7",
        (0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0),
        jpegxl,
    ),
    Classical(
        "htj2k",
        "OpenJPH, codestream per band and date, 9-7, one step",
        (0.0006, 0.0009, 0.0013, 0.0019, 0.0027, 0.004, 0.006, 0.009),
        htj2k,
    ),
    Classical(
        "webp",
        "libwebp, 8 bit, per band and date, method 6",
        (5, 20, 40, 60, 75, 85, 92, 98),
        webp,
    ),
    Classical(
        "avif",
        "libaom AV1 still pictures, 12-bit 4:0:0, per band and date, cpu-used 4, no container",
        (12, 18, 24, 30, 36, 42, 48, 56),
        avif,
    ),
    Classical(
        "hevc-time",
        "x265 12-bit over the dates, per band, preset slow",
        (24, 28, 31, 34, 37, 40, 43, 47),
        hevc_time,
    ),
    Classical(
        "hevc-time-tuned",
        "the same on one DN scale, psy and adaptive quantisation off, rd=6, no SEI",
        (20, 24, 28, 31, 34, 37, 40, 43),
        hevc_time_tuned,
    ),
    Classical(
        "av1-time",
        "libaom AV1 12-bit 4:0:0 over the dates, per band on one DN scale, cpu-used 4",
        (12, 20, 29, 38, 47),
        av1_time,
        over_time=True,
    ),
    Classical(
        "vvc-time",
        "vvenc 10-bit over the dates, per band on one DN scale, preset medium, perceptual "
        "optimisation and temporal filter off, no intra offset",
        (12, 17, 22, 27, 31),
        vvc_time,
        over_time=True,
    ),
    Classical(
        "klt-jpeg2000",
        "cube KLT, JPEG 2000 per component, one target error, headers not counted",
        (350, 250, 180, 130, 100, 75, 55, 40),
        klt_jpeg2000,
    ),
    Classical(
        "klt-jpeg2000-joint",
        "cube KLT, one JPEG 2000 codestream with one slope over all components",
        (50, 52, 54, 56, 58, 60, 62, 64),
        klt_jpeg2000_joint,
    ),
    Classical(
        "klt-x265",
        "cube KLT, x265 12-bit 4:4:4, three components a stream, psy off, over the dates",
        (10, 16, 22, 28, 34, 40),
        klt_x265,
    ),
    Classical(
        "klt-x265-tuned",
        "the same, adaptive quantisation off, equal frame types, rd=6, no SEI",
        (10, 16, 22, 28, 34, 40),
        klt_x265_tuned,
    ),
    Classical(
        "klt-vvc",
        "cube KLT, vvenc 10-bit over the dates, a stream a component, one scale, settings as "
        "vvc-time",
        (8, 13, 18, 23, 28),
        klt_vvc,
        over_time=True,
    ),
    Classical(
        "jpeg2000-on-grids",
        "jpeg2000 of native values, found as TEC finds them; one slope over all bands",
        _SLOPES,
        jpeg2000_on_grids,
    ),
    Classical(
        "jpegxl-on-grids",
        "jpegxl of native values, found as TEC finds them; one slope over all bands",
        _SLOPES,
        jpegxl_on_grids,
    ),
    Classical(
        "klt-jpeg2000-on-grids",
        "native values: a KLT for the bands of each grid, then klt-jpeg2000-joint for each; one "
        "slope over the grids",
        _SLOPES,
        klt_jpeg2000_on_grids,
    ),
    Classical(
        "htj2k-on-grids",
        "htj2k of native values; one slope over all bands",
        _SLOPES,
        htj2k_on_grids,
    ),
    Classical(
        "klt-x265-on-grids",
        "native values: a KLT for the bands of each grid, then klt-x265-tuned for each; one slope "
        "over the grids",
        _SLOPES,
        klt_x265_on_grids,
    ),
    Classical(
        "klt-vvc-on-grids",
        "native values: a KLT for the bands of each grid, then klt-vvc for each; one slope over "
        "the grids",
        _SLOPES,
        klt_vvc_on_grids,
        over_time=True,
    ),
    Classical(
        "sz3",
        "SZ3 per band and date, absolute bound",
        (60, 100, 150, 220, 330, 500),
        sz3,
    ),
    Classical(
        "sperr",
        "SPERR per date, 3-D over the bands, point-wise bound",
        (150, 230, 350, 520, 780, 1200),
        sperr,
    ),
    Classical(
        "zfp",
        "ZFP per band and date, fixed accuracy",
        (600, 1200, 2400, 4800, 9600),
        zfp,
    ),
    Classical(
        "lerc",
        "LERC per band and date, absolute bound",
        (40, 80, 120, 180, 260, 360),
        lerc,
    ),
    Classical(
        "bitround-zstd",
        "1 to 4 mantissa bits, Blosc zstd 9 with bitshuffle, per band and date",
        (1, 2, 3, 4),
        bitround_zstd,
    ),
    Classical(
        "quantize-zstd",
        "uniform steps, Blosc zstd 9 with bitshuffle, per band and date",
        (100, 170, 250, 350, 500, 700),
        quantize_zstd,
    ),
)
"""All of them, in the order of the tables."""


def _each(
    parts: Iterable[NDArray],
    shape: tuple[int, ...],
    encode: Callable[[NDArray], bytes],
    decode: Callable[[bytes], NDArray],
) -> Coded:
    """Every part through a codec of float images."""
    streams = [encode(part) for part in parts]
    decoded = np.concatenate([np.ravel(decode(data)) for data in streams])
    return sum(map(len, streams)), to_dn(decoded.reshape(shape).astype(np.float64))


def _blosc(values: NDArray, shape: tuple[int, ...]) -> Coded:
    blosc = numcodecs.Blosc("zstd", clevel=9, shuffle=numcodecs.Blosc.BITSHUFFLE)
    streams = [blosc.encode(plane) for plane in values.reshape(-1, *shape[-2:])]
    decoded = np.concatenate([np.frombuffer(blosc.decode(d), values.dtype) for d in streams])
    return sum(map(len, streams)), to_dn(decoded.reshape(shape).astype(np.float64))


def _av1(cube: Cube, streams: Iterable[NDArray], arguments: list[str]) -> Coded:
    """Streams of frames (frame, y, x) through libaom; decoded frames one after the other."""
    scale = max(float(cube.max()), 1.0) / PEAK12
    size, decoded = 2, []
    for frames in streams:
        height, width = frames.shape[-2:]
        raw = ["-f", "rawvideo", "-pix_fmt", "gray12le"]
        data = ffmpeg(
            [*raw, "-s", f"{width}x{height}", "-i", "-", "-c:v", "libaom-av1", "-b:v", "0",
             "-cpu-used", "4", "-threads", "1", "-tune", "psnr", *arguments, "-f", "obu", "-"],
            np.rint(frames / scale).astype("<u2").tobytes(),
        )  # fmt: skip
        size += len(data)
        back = ffmpeg(["-f", "obu", "-i", "-", *raw, "-"], data)
        decoded.append(np.frombuffer(back, "<u2").reshape(frames.shape) * scale)
    return size, to_dn(np.concatenate(decoded).reshape(cube.shape))
