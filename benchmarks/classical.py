"""The classical codecs TEC is compared with: one function a codec, all bytes counted.

Every function takes a cube, uint16 DN ``(time, band, y, x)``, and one rate parameter, and
returns the number of bytes a store would hold and the decoded cube (uint16 DN). Streams are
really decoded: nothing is estimated.

Two settings appear twice. The plain name is the setting of ``../shared/baselines.md`` (so
that numbers can be checked against it), the ``-tuned`` / ``-joint`` name is the best setting
found, and the one a claim must hold against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import imagecodecs
import numpy as np
from numpy.typing import NDArray

Cube = NDArray[np.uint16]
Coded = tuple[int, Cube]


@dataclass(frozen=True)
class Classical:
    """A codec with the rate parameters that cover about 34-48 dB on Sentinel-2 L2A."""

    name: str
    setting: str
    levels: tuple[float, ...]
    code: Callable[[Cube, float], Coded]


def jpeg2000(cube: Cube, level: float) -> Coded:
    """OpenJPEG, bare codestream per date and band, 9-7, ``level`` dB of a 65,535 peak."""
    streams = encode_jpeg2000(cube, level)
    return sum(map(len, streams)), decode_jpeg2000(streams, cube.shape)


def encode_jpeg2000(cube: Cube, level: float) -> list[bytes]:
    """The streams of `jpeg2000`, band by band."""
    return [
        imagecodecs.jpeg2k_encode(band, level=level, codecformat="J2K", reversible=False)
        for band in _planes(cube)
    ]


def decode_jpeg2000(streams: Sequence[bytes], shape: tuple[int, ...]) -> Cube:
    """The cube of `encode_jpeg2000`'s streams."""
    return np.stack([imagecodecs.jpeg2k_decode(data) for data in streams]).reshape(shape)


def jpegxl(cube: Cube, level: float) -> Coded:
    """libjxl per date and band, effort 7, 16-bit greyscale, butteraugli distance ``level``."""
    streams = encode_jpegxl(cube, level)
    return sum(map(len, streams)), decode_jpegxl(streams, cube.shape)


def encode_jpegxl(cube: Cube, level: float) -> list[bytes]:
    """The streams of `jpegxl`, band by band."""
    return [imagecodecs.jpegxl_encode(band, distance=level, effort=7) for band in _planes(cube)]


def decode_jpegxl(streams: Sequence[bytes], shape: tuple[int, ...]) -> Cube:
    """The cube of `encode_jpegxl`'s streams."""
    return np.stack([imagecodecs.jpegxl_decode(data) for data in streams]).reshape(shape)


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
    return size, _to_dn(decoded)


def hevc_time_tuned(cube: Cube, level: float) -> Coded:
    """x265 12-bit 4:0:0 over the dates, per band on one scale, tuned for squared error."""
    scale = max(float(cube.max()), 1.0) / _PEAK12
    size, decoded = 2, np.empty(cube.shape)
    for band in range(cube.shape[1]):
        data, frames = _x265((cube[:, band] / scale)[:, None], f"qp={level:g}:{_TUNED}")
        size += data
        decoded[:, band] = frames[:, 0] * scale
    return size, _to_dn(decoded)


def klt_jpeg2000(cube: Cube, level: float) -> Coded:
    """The cube's own KLT, then JPEG 2000 per component and date at one target error.

    ``level`` is the target RMSE in DN. Only the packets are counted (from SOD to before
    EOC): the about 150 bytes of codestream header per component are left out.
    """
    klt = _KLT.of(cube)
    planes = _centred_uint16(klt.forward(cube))
    target = 20 * np.log10(65535 / level)
    size, decoded = klt.n_bytes, np.empty(planes.shape)
    for index in np.ndindex(planes.shape[:2]):
        data = imagecodecs.jpeg2k_encode(
            planes[index], level=target, codecformat="J2K", reversible=False
        )
        size += len(data) - (data.index(b"\xff\x93") + 2) - 2
        decoded[index] = imagecodecs.jpeg2k_decode(data)
    return size, _to_dn(klt.inverse(decoded - _MIDDLE))


def klt_jpeg2000_joint(cube: Cube, level: float) -> Coded:
    """The cube's own KLT, then one JPEG 2000 codestream of all components and dates.

    OpenJPEG shares one rate-distortion slope over all components (they are its image
    components), which is what the orthonormal KLT asks for; ``level`` is dB of a 65,535
    peak over all of them. Everything is counted, with the one header.
    """
    klt = _KLT.of(cube)
    planes = _centred_uint16(klt.forward(cube))
    data = imagecodecs.jpeg2k_encode(
        planes.reshape(-1, *planes.shape[-2:]),
        level=level,
        codecformat="J2K",
        reversible=False,
        mct=False,
        planar=True,
    )
    decoded = imagecodecs.jpeg2k_decode(data, planar=True).reshape(planes.shape)
    return len(data) + klt.n_bytes, _to_dn(klt.inverse(decoded.astype(np.float64) - _MIDDLE))


def klt_x265(cube: Cube, level: float) -> Coded:
    """The cube's own KLT, then x265 12-bit 4:4:4, three components a stream, psy off.

    What xarrayvideo does, with one scale for all components; x265's information message
    is counted.
    """
    return _klt_x265(cube, f"qp={level:g}:psy-rd=0:psy-rdoq=0")


def klt_x265_tuned(cube: Cube, level: float) -> Coded:
    """`klt_x265` tuned for squared error, without x265's information message."""
    return _klt_x265(cube, f"qp={level:g}:{_TUNED}")


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
        (8, 12, 16, 20, 24, 28, 32, 36, 40, 44),
        klt_x265,
    ),
    Classical(
        "klt-x265-tuned",
        "the same, adaptive quantisation off, equal frame types, rd=6, no SEI",
        (8, 12, 16, 20, 24, 28, 32, 36, 40, 44),
        klt_x265_tuned,
    ),
)
"""All of them, in the order of the tables."""

_PEAK12 = 4095.0
_MIDDLE = 32768.0
# info=0 leaves out a 2 kB text message per stream, a third of the bytes at low rates. The rest
# turns off what trades squared error for looks, and lets B and P frames be as good as I frames,
# because dates are months apart.
_TUNED = "psy-rd=0:psy-rdoq=0:aq-mode=0:rd=6:info=0:keyint=-1:ipratio=1.0:pbratio=1.0"


@dataclass(frozen=True)
class _KLT:
    """Principal components of the bands over all dates and pixels of a cube."""

    basis: NDArray[np.float32]
    mean: NDArray[np.float32]

    @classmethod
    def of(cls, cube: Cube) -> _KLT:
        flat = np.moveaxis(cube, 1, 0).reshape(cube.shape[1], -1).astype(np.float64)
        mean = flat.mean(axis=1)
        flat -= mean[:, None]
        _, vectors = np.linalg.eigh(flat @ flat.T)
        return cls(vectors[:, ::-1].T.astype(np.float32), mean.astype(np.float32))

    @property
    def n_bytes(self) -> int:
        return self.basis.nbytes + self.mean.nbytes

    def forward(self, cube: Cube) -> NDArray[np.float64]:
        centred = cube - self.mean[:, None, None].astype(np.float64)
        return np.einsum("kc,tcyx->tkyx", self.basis.astype(np.float64), centred)

    def inverse(self, components: NDArray[np.float64]) -> NDArray[np.float64]:
        spectra = np.einsum("kc,tkyx->tcyx", self.basis.astype(np.float64), components)
        return spectra + self.mean[:, None, None]


def _klt_x265(cube: Cube, params: str) -> Coded:
    klt = _KLT.of(cube)
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
    return size, _to_dn(klt.inverse(decoded * scale + low))


def _planes(cube: Cube) -> Cube:
    return np.ascontiguousarray(cube).reshape(-1, *cube.shape[-2:])


def _centred_uint16(components: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Components, which have mean 0, as uint16 in steps of 1 DN.

    JPEG 2000 decodes a component that got no bits to exactly 32768: that must mean 0.
    """
    return np.clip(np.rint(components) + _MIDDLE, 0, 65535).astype(np.uint16)


def _to_dn(values: NDArray[np.float64]) -> Cube:
    return np.clip(np.rint(values), 0, 65535).astype(np.uint16)


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
