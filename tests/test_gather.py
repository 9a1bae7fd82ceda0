"""Batches on a device, with a stand-in for one: who gets them, and that no byte depends on them."""

from __future__ import annotations

import importlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import toy
import zarr
from test_chunk import scene

from tec_zarr import config
from tec_zarr.codec import batching
from tec_zarr.codec import encode as chunk
from tec_zarr.codec.decode import decode_chunk
from tec_zarr.codec.encode import encode_chunk
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.models import registry

SPEC = {"model": toy.NAME, "quality": 6.0}
SHAPES = [(2, 12, 16, 16), (1, 12, 16, 24)]


class Device(toy.ToyModel):
    """The toy on a stand-in for a device, which counts its batches and dislikes one value."""

    device = "stand-in"

    def __init__(self, device: str = "stand-in", dislikes: float | None = None):
        self.device, self.dislikes = device, dislikes
        self.batches: list[tuple[int, ...]] = []
        self.inside = threading.Lock()

    def encode(self, cube, quality, bands):
        return self._one(lambda: super(Device, self).encode(cube, quality, bands), [cube])

    def encode_batch(self, cubes, quality, bands):
        encode = super().encode
        return self._one(lambda: [encode(cube, quality, bands) for cube in cubes], cubes)

    def decode_batch(self, chunks, shape, quality, bands):
        assert self.inside.acquire(blocking=False)
        self.batches.append((len(chunks), *shape))
        out = [super(Device, self).decode(sections, shape, quality, bands) for sections in chunks]
        self.inside.release()
        return out

    def _one(self, work, cubes):
        assert self.inside.acquire(blocking=False), "two threads on the device"
        try:
            (shape,) = {cube.shape for cube in cubes}
            self.batches.append((len(cubes), *shape))
            if self.dislikes is not None and any((cube == self.dislikes).any() for cube in cubes):
                raise MemoryError("no room on the device")
            return work()
        finally:
            self.inside.release()


@pytest.fixture
def use(monkeypatch):
    """Put a model in the toy's place, and let as many chunks inside as come."""
    monkeypatch.setattr(batching, "WAIT_SECONDS", 0.2)

    def use(model, **how):
        registry.register_model(toy.NAME, lambda: model, toy.SHA256, **how)
        return model

    with registry.as_new_process():
        yield use


def cubes(count: int) -> list[np.ndarray]:
    return [scene(SHAPES[i % 2]).astype("uint16") + i for i in range(count)]


def at_once(function, items):
    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(function, items))


@pytest.mark.parametrize("count", [1, 2, 5, 64, 150])
def test_chunks_of_one_shape_are_coded_together_to_the_same_bytes(use, count):
    chunks = cubes(count)
    use(Device("cpu"))
    spec = ChunkSpec(**SPEC)
    alone = [encode_chunk(c, spec) for c in chunks]
    model = use(Device())
    assert at_once(lambda c: encode_chunk(c, spec), chunks) == alone
    sizes = [size for size, *_ in model.batches]
    assert sum(sizes) == count
    assert max(sizes) <= batching.LARGEST
    assert {tuple(shape) for _, *shape in model.batches} <= set(SHAPES)
    if count > 2:
        assert max(sizes) > 1
    model.batches.clear()
    for decoded, original in zip(at_once(decode_chunk, alone), chunks, strict=True):
        assert np.abs(decoded.astype(int) - original).max() <= 2
    assert sum(size for size, *_ in model.batches) == count


def test_each_chunk_of_a_batch_keeps_its_options(use):
    class Knowing(Device):
        """Writes the number of measured samples into the first section."""

        def encode(self, cube, quality, bands, known=None):
            self.batches.append((1, *cube.shape))
            encoded = toy.ToyModel.encode(self, cube, quality, bands)
            return encoded._replace(sections=[b"%d" % known.sum(), *encoded.sections[1:]])

        def encode_batch(self, cubes, quality, bands, known):
            found = [self.encode(c, quality, bands, k) for c, k in zip(cubes, known, strict=True)]
            self.batches[-len(cubes):] = [(len(cubes), *cubes[0].shape)]
            return found

    chunks = [scene(SHAPES[0]).astype("uint16") + 1 for _ in range(6)]
    for number, cube in enumerate(chunks):
        cube[..., : 2 + number] = 0
    use(Knowing("cpu"), takes=["known"])
    spec = ChunkSpec(**SPEC)
    alone = [encode_chunk(cube, spec) for cube in chunks]
    assert len(set(alone)) == 6
    model = use(Knowing(), takes=["known"])
    assert at_once(lambda cube: encode_chunk(cube, spec), chunks) == alone
    assert max(size for size, *_ in model.batches) > 1


def test_on_the_cpu_nothing_waits_for_anything(use):
    model = use(Device("cpu"))
    model.inside = threading.Semaphore(chunk.config.MAX_CONCURRENT_CHUNKS)
    at_once(lambda c: encode_chunk(c, ChunkSpec(**SPEC)), cubes(12))
    assert {size for size, *_ in model.batches} == {1}


def test_a_chunk_that_fails_fails_alone(use):
    chunks = cubes(9)
    chunks[4][0, 0, 0, 0] = 19_999
    use(Device(dislikes=19_999))
    spec = ChunkSpec(**SPEC)

    def attempt(cube):
        try:
            return encode_chunk(cube, spec)
        except MemoryError as error:
            return str(error)

    found = at_once(attempt, chunks)
    use(Device("cpu"))
    assert found.pop(4) == "no room on the device"
    del chunks[4]
    assert found == [encode_chunk(c, spec) for c in chunks]


def test_zarr_needs_no_setting_for_it(use):
    model = use(Device())
    array = zarr.create_array(
        {}, shape=(4, 12, 64, 64), chunks=(2, 12, 16, 16), shards=(4, 12, 64, 64), dtype="uint16",
        serializer={"name": "tec", "configuration": ChunkSpec(**SPEC).to_config()},
        compressors=None,
    )  # fmt: skip
    array[:] = dn = scene((4, 12, 64, 64)).astype("uint16")
    assert max(size for size, *_ in model.batches) > 1
    assert np.abs(array[:].astype(int) - dn).max() <= 2


def here_and_there(kind):
    """A published model, and one that takes the way of a device though its weights stay here."""
    from test_family_codec import make

    from tec_zarr.terracodec.codec import FamilyModel

    class There(FamilyModel):
        device = "stand-in"

    return [model(make(kind), kind, "ab" * 32) for model in (FamilyModel, There)]


@pytest.mark.parametrize("kind", ["fp", "elic", "tt", "flex"])
def test_the_family_makes_the_same_bytes_in_any_batch(kind):
    here, there = here_and_there(kind)
    chunks = [scene((2, 12, 64, 64), seed).astype("float32") for seed in range(3)]
    alone = [there.encode(c, 4.0, None) for c in chunks]
    assert there.encode_batch(chunks, 4.0, None) == alone
    sections = [encoded.sections for encoded in alone]
    together = there.decode_batch(sections, chunks[0].shape, 4.0, None)
    for encoded, (pixels, crc) in zip(alone, together, strict=True):
        expected, crc_here = here.decode(encoded.sections, pixels.shape, 4.0, None)
        assert crc == crc_here == encoded.latents_crc
        assert np.abs(np.rint(pixels) - np.rint(expected)).max() <= 1


def test_the_benchmark_counts_differing_bytes_and_says_when_there_is_no_gpu(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    here, there = here_and_there("fp")
    device = importlib.import_module("device")
    cubes = device.chunks(3, 1, 64)
    cpu, one, two = device.compare(here, there, [1, 2], cubes)
    assert [(r["device"], r["batch"]) for r in (cpu, one, two)] == [
        ("cpu", 1), ("stand-in", 1), ("stand-in", 2)
    ]  # fmt: skip
    assert one["chunks_as_in_a_batch_of_one"] == two["chunks_as_in_a_batch_of_one"] == 1
    assert min(r["encode_MB_per_s"] for r in (cpu, one, two)) > 0
    other = device.row(there, "stand-in", 2, cubes, [here.encode(cubes[0], 4.0, None)] * 3)
    assert other["chunks_as_in_a_batch_of_one"] == pytest.approx(1 / 3)
    if device.torch.cuda.is_available():
        pytest.skip("there is a GPU here: run benchmarks/device.py itself")
    device.main(["--out", str(tmp_path)])
    assert "no GPU here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_models_go_where_the_settings_say(monkeypatch):
    import torch

    from tec_zarr.terracodec import hub

    assert hub.pick_device() == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(config, "DEVICE", "meta")
    assert hub.pick_device() == "meta"
