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

import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

import imagecodecs
import numcodecs
import numpy as np
from numpy.typing import NDArray
from on_grids import jpeg2000_on_grids, jpegxl_on_grids, klt_jpeg2000_on_grids

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
    scale = max(float(cube.max()), metrics.PEAK) / _PEAK10
    size, decoded = 2, np.empty(cube.shape)
    for band in range(cube.shape[1]):
        data, decoded[:, band] = _vvc(cube[:, band] / scale, level)
        size += data
    return size, to_dn(decoded * scale)


def klt_vvc(cube: Cube, level: float) -> Coded:
    """The cube's own KLT, then vvenc 10-bit over the dates, a stream a component, one scale."""
    klt = KLT.of(cube)
    components = klt.forward(cube)
    low, scale = components.min(), max(float(np.ptp(components)), 1.0) / _PEAK10
    size, decoded = klt.n_bytes + 8, np.empty(components.shape)
    for number in range(components.shape[1]):
        data, decoded[:, number] = _vvc((components[:, number] - low) / scale, level)
        size += data
    return size, to_dn(klt.inverse(decoded * scale + low))


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
    return _each(
        planes(cube),
        cube.shape,
        lambda plane: imagecodecs.zfp_encode(plane.astype(np.float32), level, mode="a"),
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
        low, scale = plane.min(), max(float(np.ptp(plane)), 1.0) / _PEAK12
        data, frames = _x265(((plane - low) / scale)[:, None], f"qp={level:g}")
        size += data + 4  # low and high of the stretch, uint16 each
        decoded[:, band] = frames[:, 0] * scale + low
    return size, to_dn(decoded)


def hevc_time_tuned(cube: Cube, level: float) -> Coded:
    """x265 12-bit 4:0:0 over the dates, per band on one scale, tuned for squared error."""
    scale = max(float(cube.max()), 1.0) / _PEAK12
    size, decoded = 2, np.empty(cube.shape)
    for band in range(cube.shape[1]):
        data, frames = _x265((cube[:, band] / scale)[:, None], f"qp={level:g}:{_TUNED}")
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
    return _klt_x265(cube, f"qp={level:g}:psy-rd=0:psy-rdoq=0")


def klt_x265_tuned(cube: Cube, level: float) -> Coded:
    """`klt_x265` tuned for squared error, without x265's information message."""
    return _klt_x265(cube, f"qp={level:g}:{_TUNED}")


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

_PEAK10, _PEAK12 = 1023.0, 4095.0
# info=0 leaves out a 2 kB text message per stream, a third of the bytes at low rates. The rest
# turns off what trades squared error for looks, and lets B and P frames be as good as I frames,
# because dates are months apart.
_TUNED = "psy-rd=0:psy-rdoq=0:aq-mode=0:rd=6:info=0:keyint=-1:ipratio=1.0:pbratio=1.0"


def _klt_x265(cube: Cube, params: str) -> Coded:
    klt = KLT.of(cube)
    components = klt.forward(cube)
    low, scale = components.min(), max(float(np.ptp(components)), 1.0) / _PEAK12
    planes = (components - low) / scale
    size, decoded = klt.n_bytes + 8, np.empty(planes.shape)
    whole = planes.shape[1] // 3 * 3
    # What is left over of groups of three goes one component a stream.
    groups = [slice(k, k + 3) for k in range(0, whole, 3)]
    groups += [slice(k, k + 1) for k in range(whole, planes.shape[1])]
    for group in groups:
        data, frames = _x265(planes[:, group], params)
        size += data
        decoded[:, group] = frames
    return size, to_dn(klt.inverse(decoded * scale + low))


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
    scale = max(float(cube.max()), 1.0) / _PEAK12
    size, decoded = 2, []
    for frames in streams:
        height, width = frames.shape[-2:]
        raw = ["-f", "rawvideo", "-pix_fmt", "gray12le"]
        data = _ffmpeg(
            [*raw, "-s", f"{width}x{height}", "-i", "-", "-c:v", "libaom-av1", "-b:v", "0",
             "-cpu-used", "4", "-threads", "1", "-tune", "psnr", *arguments, "-f", "obu", "-"],
            np.rint(frames / scale).astype("<u2").tobytes(),
        )  # fmt: skip
        size += len(data)
        back = _ffmpeg(["-f", "obu", "-i", "-", *raw, "-"], data)
        decoded.append(np.frombuffer(back, "<u2").reshape(frames.shape) * scale)
    return size, to_dn(np.concatenate(decoded).reshape(cube.shape))


def _vvc(frames: NDArray[np.float64], qp: float) -> tuple[int, NDArray[np.float64]]:
    """Frames (time, y, x) in 0-1023 through vvenc; bytes and decoded frames.

    ffmpeg hands vvenc 4:2:0 only: the chroma is flat, and its few bytes are counted.
    """
    count, height, width = frames.shape
    luma = np.clip(np.rint(frames), 0, _PEAK10).astype("<u2").reshape(count, -1)
    chroma = np.full((count, luma.shape[1] // 2), 512, "<u2")
    raw = ["-f", "rawvideo", "-pix_fmt", "yuv420p10le"]
    data = _ffmpeg(
        [*raw, "-s", f"{width}x{height}", "-i", "-", "-c:v", "libvvenc", "-preset", "medium",
         "-qpa", "0", "-vvenc-params", "MCTF=0:BIM=0:IntraQPOffset=0", "-threads", "1",
         "-period", "999", "-qp", f"{qp:g}", "-f", "vvc", "-"],
        np.concatenate([luma, chroma], axis=1).tobytes(),
    )  # fmt: skip
    back = np.frombuffer(_ffmpeg(["-f", "vvc", "-i", "-", *raw, "-"], data), "<u2")
    decoded = back.reshape(count, -1)[:, : luma.shape[1]]
    return len(data), decoded.reshape(frames.shape).astype(np.float64)


def _ffmpeg(arguments: list[str], data: bytes) -> bytes:
    import imageio_ffmpeg  # optional: only the AV1 and VVC rows need it

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def _x265(planes: NDArray[np.float64], params: str) -> tuple[int, NDArray[np.float64]]:
    """Code frames (time, 1 or 3, y, x) in 0-4095 with x265; bytes and decoded frames."""
    import av  # optional: only the HEVC rows need it

    height, width = planes.shape[-2:]
    samples = np.clip(np.rint(planes), 0, _PEAK12).astype("<u2")
    pixels = "yuv444p12le" if planes.shape[1] == 3 else "gray12le"
    encoder = av.CodecContext.create("libx265", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, pixels
    encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
    encoder.thread_count = 1
    encoder.options = {
        "preset": "slow",
        "x265-params": f"{params}:pools=none:frame-threads=1:log-level=none",
    }
    packets = []
    for number, sample in enumerate(samples):
        frame = av.VideoFrame(width, height, pixels)
        frame.pts = number
        for plane, values in zip(frame.planes, sample, strict=True):
            rows = np.zeros((height, plane.line_size // 2), "<u2")
            rows[:, :width] = values
            plane.update(rows.tobytes())
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    streams = [bytes(packet) for packet in packets]

    decoder = av.CodecContext.create("hevc", "r")
    decoder.thread_count = 1
    frames = [frame for data in streams for frame in decoder.decode(av.Packet(data))]
    frames += decoder.decode(None)  # the decoder puts frames out in display order
    decoded = np.array(
        [
            [np.frombuffer(plane, "<u2").reshape(height, -1)[:, :width] for plane in frame.planes]
            for frame in frames
        ],
        np.float64,
    )
    return sum(map(len, streams)), decoded
