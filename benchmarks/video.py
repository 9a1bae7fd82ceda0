"""Video codecs as codecs of cubes: x265 through PyAV, vvenc and libaom through ffmpeg."""

from __future__ import annotations

import subprocess
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from tec_zarr.compare.classical import KLT, Coded, Cube, to_dn

PEAK10, PEAK12 = 1023.0, 4095.0
# info=0 leaves out a 2 kB text message per stream, a third of the bytes at low rates. The rest
# turns off what trades squared error for looks, and lets B and P frames be as good as I frames,
# because dates are months apart.
TUNED = "psy-rd=0:psy-rdoq=0:aq-mode=0:rd=6:info=0:keyint=-1:ipratio=1.0:pbratio=1.0"


def klt_x265_with(cube: Cube, params: str) -> Coded:
    """The cube's own KLT, then x265 with these parameters, three components a stream."""
    klt = KLT.of(cube)
    components = klt.forward(cube)
    low, scale = components.min(), max(float(np.ptp(components)), 1.0) / PEAK12
    planes = (components - low) / scale
    size, decoded = klt.n_bytes + 8, np.empty(planes.shape)
    whole = planes.shape[1] // 3 * 3
    # What is left over of groups of three goes one component a stream.
    groups = [slice(k, k + 3) for k in range(0, whole, 3)]
    groups += [slice(k, k + 1) for k in range(whole, planes.shape[1])]
    for group in groups:
        data, frames = x265(planes[:, group], params)
        size += data
        decoded[:, group] = frames
    return size, to_dn(klt.inverse(decoded * scale + low))


def klt_vvc(cube: Cube, level: float) -> Coded:
    """The cube's own KLT, then vvenc 10-bit over the dates, a stream a component, one scale."""
    klt = KLT.of(cube)
    components = klt.forward(cube)
    low, scale = components.min(), max(float(np.ptp(components)), 1.0) / PEAK10
    size, decoded = klt.n_bytes + 8, np.empty(components.shape)
    for number in range(components.shape[1]):
        data, decoded[:, number] = vvc((components[:, number] - low) / scale, level)
        size += data
    return size, to_dn(klt.inverse(decoded * scale + low))


def vvc(frames: NDArray[np.float64], qp: float) -> tuple[int, NDArray[np.float64]]:
    """Frames (time, y, x) in 0-1023 through vvenc; bytes and decoded frames.

    ffmpeg hands vvenc 4:2:0 only: the chroma is flat, and its few bytes are counted.
    """
    # vvenc takes multiples of 8 and no less than 32; native planes may have other sides.
    sides = [(0, max(-side % 8, 32 - side)) for side in frames.shape[1:]]
    whole = np.pad(frames, [(0, 0), *sides], mode="edge")
    count, height, width = whole.shape
    luma = np.clip(np.rint(whole), 0, PEAK10).astype("<u2").reshape(count, -1)
    chroma = np.full((count, luma.shape[1] // 2), 512, "<u2")
    raw = ["-f", "rawvideo", "-pix_fmt", "yuv420p10le"]
    data = ffmpeg(
        [*raw, "-s", f"{width}x{height}", "-i", "-", "-c:v", "libvvenc", "-preset", "medium",
         "-qpa", "0", "-vvenc-params", "MCTF=0:BIM=0:IntraQPOffset=0", "-threads", "1",
         "-period", "999", "-qp", f"{qp:g}", "-f", "vvc", "-"],
        np.concatenate([luma, chroma], axis=1).tobytes(),
    )  # fmt: skip
    back = np.frombuffer(ffmpeg(["-f", "vvc", "-i", "-", *raw, "-"], data), "<u2")
    decoded = back.reshape(count, -1)[:, : luma.shape[1]]
    inside = decoded.reshape(whole.shape)[:, : frames.shape[1], : frames.shape[2]]
    return len(data), inside.astype(np.float64)


def ffmpeg(arguments: list[str], data: bytes) -> bytes:
    import imageio_ffmpeg  # optional: only the AV1 and VVC rows need it

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def x265(planes: NDArray[np.float64], params: str) -> tuple[int, NDArray[np.float64]]:
    """Code frames (time, 1 or 3, y, x) in 0-4095 with x265; bytes and decoded frames."""
    import av  # optional: only the HEVC rows need it

    height, width = planes.shape[-2:]
    samples = np.clip(np.rint(planes), 0, PEAK12).astype("<u2")
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
