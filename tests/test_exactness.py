"""The same bytes decode to the same latents whatever instructions, library paths and threads do
the work, and whatever is damaged, swapped or miscomputed raises.

Every setting runs in a process of its own, writes frames and reads those of all settings before it;
the last one reads everybody's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from exactness_worker import EMBEDDED
from test_family_codec import codec, make, scene
from tiles import tensors

from tec_zarr import ChunkSpec, decode_chunk, encode_chunk
from tec_zarr.cubes import synthetic
from tec_zarr.errors import ChecksumError, TecError
from tec_zarr.frame.frame import read_frame, write_frame
from tec_zarr.models.tile.embedded import TecS2
from tec_zarr.native import core
from tec_zarr.native.tile import TileModel
from tec_zarr.terracodec import checkpoints
from tec_zarr.terracodec.codec import FamilyModel
from tec_zarr.terracodec.exact import exact
from tec_zarr.terracodec.ledger import EPSILON
from tec_zarr.training.weights import weights_file

WORKER = Path(__file__).parent / "exactness_worker.py"
SETTINGS: dict[str, tuple[Mapping[str, str], int]] = {
    "default": ({}, 2),
    "one-thread": ({}, 1),
    "sse41": ({"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}, 1),
    "avx2": ({"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}, 2),
    "avx512": ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512"}, 1),
    "mkl-compatible": ({"MKL_CBWR": "COMPATIBLE"}, 2),
    "no-onednn": ({}, 2),
    "bf16": ({"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}, 1),
    **{f"kernel-{name}": ({"TEC_NATIVE": name}, 1) for name in core.kernels()},
    "default-again": ({}, 2),
}


if torch.backends.cpu.get_cpu_capability() != "AVX512":
    del SETTINGS["avx512"]  # its instructions end a process on this processor


def run_settings(folder: Path, settings: Mapping[str, tuple[Mapping[str, str], int]]) -> dict:
    """Run the worker under each setting; what they wrote, by setting."""
    for kind in ("fp", "elic", "tt", "flex"):
        checkpoints.save(make(kind), folder / f"{kind}.safetensors")
    found = {}
    for name, (environment, threads) in settings.items():
        run = subprocess.run(
            [sys.executable, str(WORKER), str(folder), name, str(threads)],
            env={**os.environ, "TEC_ZARR_CACHE": str(folder / "cache"), **environment},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert run.returncode == 0, f"{name}:\n{run.stderr[-3000:]}"
        with np.load(folder / f"{name}.npz") as arrays:
            found[name] = json.loads((folder / f"{name}.json").read_text()) | {
                "arrays": dict(arrays)
            }
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exactness")
    cube = synthetic.cube(dates=2, size=72, seed=11).values
    noise = np.random.default_rng(0).integers(1, 12000, (2, 4, 40, 40)).astype(np.uint16)
    np.savez(folder / "cubes.npz", cube=cube, noise=noise)
    return run_settings(folder, SETTINGS)


def test_latents_are_identical_under_every_setting(results):
    agreed: dict[str, tuple[str, ...]] = {}
    for name, result in results.items():
        for frame, item in result["found"].items():
            latents = (item["latents"],)
            assert latents == agreed.setdefault(frame, latents), (name, item["model"])
    everywhere = results["default"]["found"].values()
    assert len({item["model"] for item in everywhere}) == 8
    published = [i for i in everywhere if i["model"] not in (*EMBEDDED, "bounded")]
    assert all(item["indexes"] > 500 for item in published)


def test_the_embedded_models_and_bounds_write_the_same_bytes_under_every_setting(results):
    frames = results["default"]["frames"]
    first = {k: v for k, v in frames.items() if k.split(".")[1] in (*EMBEDDED, "bounded")}
    assert len(first) == 20
    for name, result in results.items():
        for key, frame in first.items():
            assert result["frames"][key] == frame, (name, key)


def test_pixels_are_the_same_or_differ_by_one_at_most(results, capsys):
    counts: dict[tuple[str, str], list[float]] = {}
    first: dict[str, np.ndarray] = {}
    for name, result in results.items():
        for frame, item in result["found"].items():
            pixels = result["arrays"][frame].astype(np.int64)
            difference = np.abs(pixels - first.setdefault(frame, pixels))
            if item["model"] in (*EMBEDDED, "bounded"):  # whole numbers throughout
                assert difference.max() == item["batch"] == 0, name
            assert item["batch"] <= 1, (name, item["model"])
            # bf16 was asked for by the user: float32 syntheses obey, latents do not.
            assert difference.max() <= 1 or name == "bf16", (name, item["model"])
            counts.setdefault((item["model"], name), []).append(float((difference > 0).mean()))
    with capsys.disabled():
        print("\nshare of pixels that differ from the first setting that decoded the frame:")
        for (model, name), shares in sorted(counts.items()):
            if max(shares):
                print(f"  {model} {name}: {np.mean(shares):.2e}")


def test_continuous_indexes_stay_far_inside_epsilon(results):
    first = results["default"]["arrays"]
    keys = [key for key in first if key.startswith("continuous") and first[key].size]
    assert sum(first[key].size for key in keys) > 2_000  # ELIC's: the others have none
    for name, result in results.items():
        for key in keys:
            assert np.abs(result["arrays"][key] - first[key]).max() < EPSILON / 100, name


# ---- the same on a GPU

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = [pytest.param("cuda", marks=gpu), "cpu"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["fp", "elic", "tt", "flex"])
def test_streams_of_the_family_pass_between_a_device_and_the_cpu(kind, device):
    here = codec(kind)
    there = FamilyModel(make(kind).to(device), here.name, here.weights_sha256)
    cube = scene(2, 12, 64, 128)
    # TF32 would take pixels further than a DN; the entropy path does not see it.
    with torch.backends.cudnn.flags(allow_tf32=False):
        for writer, reader in ((here, there), (there, here)):
            encoded = writer.encode(cube, 4.0, None)
            pixels, crc = reader.decode(encoded.sections, cube.shape, 4.0, None)
            own, _ = writer.decode(encoded.sections, cube.shape, 4.0, None)
            assert crc == encoded.latents_crc
            assert np.abs(np.rint(pixels) - np.rint(own)).max() <= 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["tt", "flex"])
@torch.inference_mode()
def test_the_transformer_answers_the_same_bits_on_a_device(kind, device):
    torch.manual_seed(0)
    model = make(kind)
    channels = model.entropy_model.channels
    latents = (torch.randn(2, 1, channels, 8, 12) * 8).round()

    def answers(where):
        contexts = exact(model.to(where)).contexts()
        for latent in latents:
            contexts.push(latent.to(where))
        tokens = contexts.model.tokens(latents[0].to(where))
        return [part.cpu() for part in contexts.model.predict(tokens, contexts.joint())]

    for here, there in zip(answers("cpu"), answers(device), strict=True):
        assert torch.equal(here, there)
        assert here.std() > 0.01


# ---- errors planted one at a time


@pytest.fixture(scope="module")
def small():
    return synthetic.cube(dates=1, size=16, seed=5, nodata_edge=False).values[:, :3]


def test_one_wrong_latent_raises_and_names_model_and_chunk(small):
    parsed = read_frame(encode_chunk(small, ChunkSpec(quality=6)))
    sections = [replace(s, latents_crc=s.latents_crc ^ 1) for s in parsed.sections]
    frame = write_frame(parsed.header, sections)
    with pytest.raises(ChecksumError, match=r"'tec-s2' decoded other latents .*\(1, 3, 16, 16\)"):
        decode_chunk(frame)


def test_every_flipped_bit_of_a_frame_of_the_default_model_raises(small):
    frame = encode_chunk(small, ChunkSpec(quality=3))
    assert 50 < len(frame) < 400
    for bit in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TecError):
            decode_chunk(bytes(damaged))


def test_symbols_damaged_before_any_checksum_never_decode_to_other_latents(small):
    # A section that was already damaged when its CRC32 was taken: the latents' checksum is left.
    read = read_frame(encode_chunk(small, ChunkSpec(quality=6)))
    (section,) = read.sections
    good = decode_chunk(write_frame(read.header, read.sections))
    noticed = 0
    bits = range(8 * 40, 8 * len(section.data), 7)  # behind the header, which no latents depend on
    for bit in bits:
        damaged = bytearray(section.data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = decode_chunk(write_frame(read.header, [replace(section, data=bytes(damaged))]))
        except TecError:
            noticed += 1
            continue
        assert np.array_equal(found, good)  # the last bits of a stream are free
    assert noticed > 0.8 * len(bits)


def test_weights_that_are_not_the_encoders_raise(small, monkeypatch):
    frame = encode_chunk(small, ChunkSpec(quality=6))
    other = tensors()
    other["context.last_bias"] = other["context.last_bias"] + 3000
    strange = TecS2(TileModel(weights_file(other)), "0" * 64)
    monkeypatch.setattr("tec_zarr.codec.decode.get_model", lambda *_: strange)
    with pytest.raises(TecError):
        decode_chunk(frame)
