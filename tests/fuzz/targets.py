"""What is fuzzed: functions of bytes that may raise nothing but the documented errors.

Each target takes what a fuzzer made up and returns quietly, or lets an exception out that no user
should see. Checksums would stop nearly all inputs at the door, so most targets build them: a
stranger can do that too. ``run.py`` feeds the targets from atheris, ``test_robustness_fuzz.py``
from hypothesis.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # toy.py

import toy

from tec_zarr import config
from tec_zarr.bounds import layer
from tec_zarr.codec.decode import decode_chunk
from tec_zarr.codec.encode import encode_chunk
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.errors import TecError
from tec_zarr.frame.frame import Axes, Header, Section, SectionKind, read_frame, write_frame
from tec_zarr.frame.mask import pack_mask, unpack_mask
from tec_zarr.models.registry import find_model
from tec_zarr.models.tokens import FlexSection

EMBEDDED = ("tec-s2", "tec-tt-s2", "tec-flex-s2")
LARGEST = 2**18
"""Samples of a chunk while fuzzing: what is slow in proportion must not look like a hang."""


def prepare() -> None:
    """Set what every target relies on; call once."""
    toy.register()
    config.MAX_CHUNK_SAMPLES = LARGEST
    warnings.simplefilter("error")


# ---- frames


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _seal(body: bytes, payloads: bytes = b"") -> bytes:
    """A frame of any body, with the checksum that makes a reader look at it."""
    head = b"TEC\x01" + _varint(len(body)) + body
    return head + struct.pack("<I", zlib.crc32(head)) + payloads


def _cut(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Sections from what a fuzzer made up: kind and length, then the payload.

    Latents begin with the checksum of what they decode to.
    """
    at = 0
    while at + 2 <= len(data):
        kind, size = data[at] & 7, data[at + 1] | (data[at] >> 3) << 8
        yield kind, data[at + 2 : at + 2 + size]
        at += 2 + size


def _row(kind: int, content: bytes) -> bytes:
    """A row of the section table."""
    check = b""
    if kind == SectionKind.LATENTS:
        check, content = content[:4].ljust(4, b"\0"), content[4:]
    return _varint(len(content)) + struct.pack("<I", zlib.crc32(content)) + check


def make_frame(data: bytes) -> bytes:
    """A frame in one of three ways, chosen by the first byte.

    0: the bytes themselves. 1: they are a header's body. 2: they are a header's fields, and
    sections whose table and checksums are right.
    """
    way, rest = data[:1], data[1:]
    if way == b"\x01":
        return _seal(rest)
    if way == b"\x02" and rest:
        size = rest[0]
        fields, sections = rest[1 : 1 + size], list(_cut(rest[1 + size :]))
        table = b""
        for kind, run in groupby(sections, key=lambda s: s[0]):
            rows = [_row(kind, content) for _, content in run]
            table += bytes([kind]) + _varint(len(rows)) + b"".join(rows)
        payloads = (p[4:] if kind == SectionKind.LATENTS else p for kind, p in sections)
        return _seal(fields + table, b"".join(payloads))
    return rest


def _as_input(frame: bytes) -> list[bytes]:
    """Inputs of :func:`make_frame` that make (nearly) this frame, in each of the three ways."""
    parsed = read_frame(frame)
    start = 4 + len(_varint(parsed.header_bytes))
    body = frame[4:]
    size, at = 0, 0
    while True:
        size |= (body[at] & 0x7F) << 7 * at
        at += 1
        if body[at - 1] < 0x80:
            break
    body = body[at : at + size]
    table, sections = 0, b""
    for kind, run in groupby(parsed.sections, key=lambda s: s.kind):
        contents = [
            struct.pack("<I", s.latents_crc) + s.data if kind is SectionKind.LATENTS else s.data
            for s in run
        ]
        table += 1 + len(_varint(len(contents))) + sum(len(_row(kind, p)) for p in contents)
        sections += b"".join(
            bytes([kind | (len(p) >> 8 & 31) << 3, len(p) & 255]) + p for p in contents
        )
    fields = body[: max(len(body) - table, 0)]
    out = [b"\x00" + frame, b"\x01" + body]
    if len(fields) < 256:
        out.append(b"\x02" + bytes([len(fields)]) + fields + sections)
    assert start > 4
    return out


def seeds() -> list[bytes]:
    """Frames of every kind, as inputs of the frame targets."""
    rng = np.random.default_rng(0)
    dn = rng.integers(1, 3000, (2, 12, 8, 8)).astype("u2")
    dn[0, :, :3] = 0
    dn[1, 3, 4] = 65535
    reflectance = (dn * 1e-4).astype(">f4")
    reflectance[0, 0, 0, 0] = np.nan
    specs = [
        (dn, {"model": toy.NAME}),
        (dn[:1, :3], {"model": toy.NAME, "bands": ["B02", "B03", "B8A"], "nodata": [0, 7]}),
        (reflectance, {"model": toy.NAME, "offset": 1000.0, "nodata": -9999}),
        (np.asfortranarray(dn[0]), {"model": toy.NAME}),
        (dn[0, 0], {"model": toy.NAME}),
        (dn[:, 0].astype("i2"), {"model": toy.NAME, "bands": ["B02"]}),
        (np.zeros_like(dn), {"model": toy.NAME}),
        (dn[:1, :3], {"model": toy.NAME, "max_error": 5}),
        (dn[:1, :2].astype("f8"), {"model": toy.NAME, "max_error": 0, "scale": 1.0}),
        (dn[:1], {}),
        (dn[:1, :1], {}),
    ]
    return [i for a, kw in specs for i in _as_input(encode_chunk(a, ChunkSpec(**kw)))]


def stream(data: bytes) -> None:
    """The parser of frames."""
    with contextlib.suppress(TecError):
        read_frame(make_frame(data))


def chunk(data: bytes) -> None:
    """A whole chunk; what comes back must be what the header announced."""
    frame = make_frame(data)
    with contextlib.suppress(TecError):
        out = decode_chunk(frame)
        header = read_frame(frame).header
        assert (out.shape, out.dtype) == (header.shape, header.dtype)


def section(data: bytes) -> None:
    """Latents of an embedded model that nobody encoded, in a sound frame."""
    if len(data) < 4:
        return
    name = EMBEDDED[data[2] // 24 % 3]
    t, c, h, w = 1 + data[0] % 2, 1 + data[1] % 31, 1 + data[2] % 24, 1 + data[3] % 24
    half = len(data) // 2 + 2
    parts = [data[4:half], data[half:]] if t == 2 else [data[4:]]
    checks = [zlib.crc32(part) for part in parts]
    if name == "tec-flex-s2":
        head = (4096 + 100 * data[0]).to_bytes(2, "little")
        pieces = [FlexSection(1, head, (part[:20], part[20:])[: 1 + data[3] % 2]) for part in parts]
        parts, checks = [p.to_bytes() for p in pieces], [p.check() for p in pieces]
    entry = find_model(name)
    fields = Header(
        model_id=entry.number, model_name="", weights=bytes.fromhex(entry.newest)[:8],
        quality=1 + 7 * (data[0] >> 1) / 127, axes=Axes.TCYX, shape=(t, c, h, w),
        dtype=np.dtype("uint16"), fortran=False, bands=None, nodata=(0.0,), scale=1.0, offset=0.0,
        bounds=None, errors=None, indices=(),
    )  # fmt: skip
    pairs = zip(parts, checks, strict=True)
    latents = [Section(SectionKind.LATENTS, part, check) for part, check in pairs]
    with contextlib.suppress(TecError):
        assert decode_chunk(write_frame(fields, latents)).shape == (t, c, h, w)


def section_seeds() -> list[bytes]:
    """Sections that were encoded."""
    from tec_zarr.models.registry import get_model

    rng = np.random.default_rng(0)
    out = []
    for c, h, w in ((1, 8, 8), (3, 12, 20), (12, 16, 16), (31, 8, 9)):
        cube = rng.normal(2000, 300, (1, c, h, w)).astype("f4")
        for number, name in enumerate(EMBEDDED[:2]):
            encoded = get_model(name).encode(cube, 4.0, None)
            head = bytes([54 << 1, c - 1, 24 * number + h - 1, w - 1])
            out.append(head + encoded.sections[0])
    return out


def mask(data: bytes) -> None:
    """The mask and the exact values."""
    if len(data) < 6:
        return
    shape = (1 + data[0] % 3, 1 + data[1] % 4, 1 + data[2] % 40, 1 + data[3] % 40)
    dtype = np.dtype(("u2", "i2", "f4", "f8")[data[4] & 3])
    size = 1 + data[5]
    packed, exact = data[6 : 6 + size], data[6 + size :]
    if data[4] & 4:  # a well-made zlib stream behind whatever stands first
        exact = b"\x01" + zlib.compress(exact)
    with contextlib.suppress(TecError):
        labels = unpack_mask(packed, exact, shape, dtype)
        samples = np.zeros(shape, dtype)
        labels.restore(samples)


def mask_seeds() -> list[bytes]:
    """Masks that were packed."""
    from tec_zarr.frame.mask import Mask

    rng = np.random.default_rng(0)
    out = []
    for shape in ((1, 1, 8, 8), (3, 4, 20, 30)):
        labels = rng.integers(0, 3, shape).astype("u1")
        listed = np.arange(np.count_nonzero(labels == 2)).astype("u2")
        packed, exact = pack_mask(Mask(labels, np.array([7], "u2"), listed))
        if len(packed) <= 256:
            place = [n - 1 for n in shape]
            out.append(bytes([*place, 0, len(packed) - 1]) + packed + exact)
    return out


def bounds(data: bytes) -> None:
    """Sections of the bound layer that nobody encoded."""
    if len(data) < 6:
        return
    shape = (1 + data[0] % 2, 1 + data[1] % 5, 1 + data[2] % 20, 1 + data[3] % 20)
    limits = [data[4] + band for band in range(shape[1])]
    valid = None
    if data[5] & 1:
        valid = np.random.default_rng(data[5]).random(shape) < 0.7
    with contextlib.suppress(TecError):
        layer.decode(data[6:], valid, shape, limits)


def bounds_seeds() -> list[bytes]:
    """Sections that the bound layer made."""
    rng = np.random.default_rng(0)
    out = []
    for shape, bits in (((1, 1, 8, 8), 0), ((2, 5, 12, 16), 1)):
        dn = rng.integers(0, 3000, shape).astype("i4")
        valid = np.random.default_rng(bits).random(shape) < 0.7 if bits else None
        limits = [3 + band for band in range(shape[1])]
        data = layer.encode(dn, valid, limits)
        out.append(bytes([*(n - 1 for n in shape), 3, bits]) + data)
    return out


# ---- metadata


def codec_config(data: bytes) -> None:
    """``from_dict``, ``from_config`` and back, of any JSON that metadata may hold."""
    from tec_zarr import TEC, TECCodec

    try:
        item = json.loads(data)
    except (ValueError, RecursionError):
        return
    for build in (
        lambda: TECCodec.from_dict(item if isinstance(item, dict) else {"name": "tec"}),
        lambda: TECCodec.from_dict({"name": "tec", "configuration": item}),
        lambda: TEC.from_config(dict(item)) if isinstance(item, dict) else TEC(),
    ):
        with contextlib.suppress(TecError):
            codec = build()
            again = codec.to_dict() if isinstance(codec, TECCodec) else codec.get_config()
            json.dumps(again, allow_nan=False)
            hash(codec)


CONFIG_SEEDS = [
    b'{"name": "tec", "configuration": {"model": "tec-s2", "quality": 4, "bands": ["B02"]}}',
    b'{"model": "toy", "quality": 4.5, "nodata": [0, -9999.5], "scale": 1e-4, "offset": 1000}',
    b'{"max_error": [1, 2.5], "psnr": null, "max_bytes": null, "weights_sha256": "00"}',
    b'{"psnr": 42.0}', b'{"max_bytes": 1e5}', b'{"max_error": {"ndvi": 0.01, "B04": 5}}',
    b'{"nodata": NaN}', b'{"quality": Infinity}', b'[["model", "toy"]]', b"17",
]  # fmt: skip


def manifest(data: bytes) -> None:
    """The record of a recompression: any JSON, also under a checksum that holds."""
    from zarr.storage import MemoryStore

    from tec_zarr.recompression.manifest import FOLDER, Manifest
    from tec_zarr.stores.objects import write

    texts = [data]
    with contextlib.suppress(ValueError, RecursionError):
        body = json.dumps(json.loads(data), sort_keys=True)
        texts.append(b'{"crc32": %d, "item": %s}' % (zlib.crc32(body.encode()), body.encode()))
    for text in texts:
        record = Manifest(MemoryStore())
        write(record.store, f"{FOLDER}/config.json", text)
        write(record.store, f"{FOLDER}/done/0-0.json", text)
        with contextlib.suppress(TecError):
            record.read_config()
        with contextlib.suppress(TecError):
            record.finished()


MANIFEST_SEEDS = [
    json.dumps({
        "array": 0, "region": 0, "source_crc32": 1, "objects": {"c/0/0": [1, 2]}, "raw_bytes": 1,
        "samples": 1, "verified": 1, "squared_error": 0.5, "compared": 1, "max_error": 1.0,
        "seconds": 0.1,
    }).encode(),
    b'{"crc32": 1, "item": {}}', b'{"item": [], "crc32": 0}', b"[" * 5000,
]  # fmt: skip


def weights(data: bytes) -> None:
    """A weights file that somebody embedded under its own, honest hash, and decoding by it."""
    import hashlib

    from tec_zarr.models import registry
    from tec_zarr.stores import embed

    name, content = make_weights(data)
    sha256 = hashlib.sha256(content).hexdigest()
    before = os.environ.get("TEC_ZARR_CACHE")
    with tempfile.TemporaryDirectory(dir=_RAM) as folder:
        os.environ["TEC_ZARR_CACHE"] = folder
        try:
            embed.keep_embedded(name, content, sha256)
            model = registry.get_model(name, sha256)
        except TecError:
            return
        finally:
            registry.unload(name, sha256)
            os.environ.pop("TEC_ZARR_CACHE")
            if before is not None:
                os.environ["TEC_ZARR_CACHE"] = before
    # As chunks do, whatever a model raises becomes a ChecksumError: here nothing may crash or hang.
    with contextlib.suppress(Exception), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.decode(_sections(name), _SHAPE, 8.0, None)


_SHAPE = (2, 3, 24, 16)
_VALUES = (0, 1, -1, 3, 127, -128, 255, 4096, 2**15, 2**16, 2**24, 2**31 - 1, -(2**31), 1e-40,
           1e30, np.inf, -np.inf, np.nan)  # fmt: skip


@cache
def _sections(name: str) -> list[bytes]:
    from tec_zarr.models.registry import get_model

    rng = np.random.default_rng(5)
    cube = 3000 + 900 * rng.standard_normal(_SHAPE).cumsum(2).astype("f4")
    return get_model(name).encode(cube, 8.0, None).sections


@cache
def released_weights() -> list[tuple[str, dict[str, np.ndarray]]]:
    """(model, tensors) of all weights of the package."""
    from safetensors.numpy import load_file

    from tec_zarr.models import weights as models_weights

    return [
        (name, load_file(file))
        for name in models_weights.index_items()
        for file in models_weights.released_weights(name).values()
    ]


def make_weights(data: bytes) -> tuple[str, bytes]:
    """A model's name and its file, in one of two ways, chosen by the first byte.

    0: the bytes themselves. Else: released weights with changes of 8 bytes each.
    """
    from safetensors.numpy import save

    if data[:1] in (b"", b"\0"):
        return "tec-s2", data[1:]
    files = released_weights()
    name, there = files[data[0] % len(files)]
    tensors = dict(there)
    for at in range(1, len(data) - 7, 8):
        kind, which, value, place, other = struct.unpack("<BHBHH", data[at : at + 8])
        key = sorted(tensors)[which % len(tensors)] if tensors else ""
        if tensors:
            _change(tensors, key, kind % 9, _VALUES[value % len(_VALUES)], place, other)
    return name, save({key: np.ascontiguousarray(value) for key, value in tensors.items()})


def _change(
    tensors: dict[str, np.ndarray], key: str, kind: int, value: float, place: int, other: int
) -> None:
    """One change of one tensor, which is copied."""
    array = tensors[key].copy()
    whole = array.dtype.kind in "iu"
    if whole:
        limits = np.iinfo(array.dtype)
        value = int(np.clip(np.nan_to_num(value), limits.min, limits.max))
    flat = array.reshape(-1)
    with np.errstate(all="ignore"):
        if kind == 0 and flat.size:
            flat[place * 977 % flat.size] = value
        elif kind == 1:
            array[...] = value
        elif kind == 2:  # shorter along an axis
            axis = place % max(array.ndim, 1)
            array = np.delete(array, -1, axis) if array.ndim and array.shape[axis] else array
        elif kind == 3:
            array = np.concatenate([array, array[-1:]]) if array.ndim else array
        elif kind == 4:
            array = array.astype(["i1", "i4", "f2", "f4", "i8"][place % 5])
        elif kind == 5:
            del tensors[key]
            return
        elif kind == 6:
            tensors[f"{key}.{place}"] = array
        elif kind == 7 and array.ndim == 2 and whole:  # sums of rows stay
            row = array[place % len(array)]
            row[place % row.size] -= value
            row[other % row.size] += value
        elif kind == 8:
            array = array.reshape(array.shape[::-1])
    tensors[key] = array


_RAM = "/dev/shm" if os.path.isdir("/dev/shm") else None


def weights_seeds() -> list[bytes]:
    """Small tensors under the names of the real ones, and changes of released weights."""
    from safetensors.numpy import save

    tables = np.zeros((4, 9), "i4")
    tables[:, 4] = 2**16
    files = [
        save({"tables": tables}),
        save({"tables": np.zeros((2, 3), "f4"), "x": np.ones(3, "i8")}),
        save({}),
        struct.pack("<Q", 2) + b"{}",
    ]
    changes = [
        bytes([n]) + struct.pack("<BHBHH", kind, 7 * n + kind, kind, 300, 40)
        for n in range(1, len(released_weights()) + 1)
        for kind in range(9)
    ]
    return [b"\0" + file for file in files] + changes


# ---- the command line


def command_line(data: bytes) -> None:
    """A file of any bytes, under any of the names that the command line takes."""
    from tec_zarr.face.cli import main

    names = ("a.npz", "a.nc", "a.tif", "a.zarr", "a.h5", "a.txt", "zarr.json", ".zarray", ".zgroup")
    if len(data) < 2:
        return
    name = names[data[0] % len(names)]
    with tempfile.TemporaryDirectory(dir=_RAM) as folder:
        path = Path(folder) / name
        path.write_bytes(data[2:])
        source = folder if name.startswith((".z", "zarr")) else str(path)
        command = (
            ["info", source],
            ["verify", source, source],
            ["encode", source, f"{folder}/out.zarr"],
            ["decode", source, f"{folder}/out2.zarr"],
        )[data[1] % 4]
        silent = io.StringIO()
        with (
            contextlib.redirect_stderr(silent),
            contextlib.redirect_stdout(silent),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of the libraries that read those files
            assert main(command) in (0, 1)


def command_seeds() -> list[bytes]:
    """Files that are nearly right."""
    npz = io.BytesIO()
    np.savez(npz, dn=np.ones((1, 12, 8, 8), "u2"), present=np.arange(12) < 2)
    return [
        b"\x00\x02" + npz.getvalue(),
        b"\x06\x00" + b'{"zarr_format": 3, "node_type": "group", "attributes": {}}',
        b"\x07\x01" + b'{"zarr_format": 2, "shape": [8, 8], "chunks": [8, 8], "dtype": "<u2", '
        b'"compressor": {"id": "tec"}, "fill_value": 0, "order": "C", "filters": null}',
        b"\x01\x00" + b"\x89HDF\r\n\x1a\n" + bytes(64),
        b"\x02\x03" + b"II*\x00\x08\x00\x00\x00" + bytes(64),
    ]


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "stream": (stream, seeds),
    "chunk": (chunk, seeds),
    "section": (section, section_seeds),
    "mask": (mask, mask_seeds),
    "bounds": (bounds, bounds_seeds),
    "config": (codec_config, lambda: CONFIG_SEEDS),
    "manifest": (manifest, lambda: MANIFEST_SEEDS),
    "weights": (weights, weights_seeds),
    "command_line": (command_line, command_seeds),
}
"""Name to target and seeds."""
