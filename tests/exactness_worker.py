"""Runs in a process of its own, under some CPU setting: encode the cubes, decode all frames.

Usage: exactness_worker.py FOLDER NAME THREADS

Reads ``FOLDER/cubes.npz`` and ``FOLDER/<kind>.safetensors`` (small models of the family), writes
its own frames to ``FOLDER/NAME/``, then decodes these and the frames of all settings before it,
one by one and as a batch in four threads. What it found goes to ``FOLDER/NAME.json`` (hashes of
table indexes and symbols by hash of the frame, and of what the transformer of TEC-TT and FlexTEC
answers) and ``FOLDER/NAME.npz`` (pixels, and ELIC's continuous table indexes).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from tec_zarr import ChunkSpec, decode_chunk, encode_chunk
from tec_zarr.entropy import gaussian_tables, range_coder
from tec_zarr.frame.frame import SectionKind, read_frame
from tec_zarr.models.constants import BLOCK, GROUPS
from tec_zarr.models.registry import find_model, get_model
from tec_zarr.networks import image
from tec_zarr.terracodec import hub
from tec_zarr.terracodec.ledger import LedgerReader
from tec_zarr.terracodec.tt import TokenDecoder

QUALITIES = (2.0, 5.0, 7.5)
FAMILY = {
    "fp": "terracodec_v1_fp_s2l2a",
    "elic": "terracodec_v1_elic_s2l2a",
    "tt": "terracodec_v1_tt_s2l2a",
    "flex": "flextec_v1_s2l2a",
}


class Recorder:
    """Hashes the table indexes and symbols of all decoders, of tec-s2 the latents or their
    checksums; keeps the continuous indexes.
    """

    def __init__(self) -> None:
        self.indexes = 0
        self.whole = False
        self.continuous: list[np.ndarray] = []
        self._digest = hashlib.sha256()
        get, code = range_coder.SymbolDecoder.get, gaussian_tables.SymbolDecoder.code
        decode = image.LatentCoder.decode
        decide = range_coder.BitDecoder.code
        floor = LedgerReader.floor
        advance = TokenDecoder.advance

        def s2_get(decoder, index):
            symbols = get(decoder, index)
            return symbols if self.whole else self.see(index, symbols)

        def s2_decode(coder, data, context, rows, columns, past=None, reference=False):
            # Compiled or not: there the symbols of tec-s2 are not seen, so its latents are.
            self.whole = past is None
            latents, context = decode(coder, data, context, rows, columns, past, reference)
            if self.whole:
                self.see(latents, latents)
            self.whole = False
            return latents, context

        def family_code(decoder, ids, tables):
            return self.see(ids, code(decoder, ids, tables))

        def flex_decide(decoder, chance, ones=None):
            return self.see(chance, decide(decoder, chance, ones))

        def decoder_advance(decoder, inputs):
            answers = advance(decoder, inputs)
            for values in answers:
                self._digest.update(values.numpy().tobytes())
            return answers

        def ledger_floor(reader, values):
            self.continuous.append(values.ravel().copy())
            return floor(reader, values)

        range_coder.SymbolDecoder.get = s2_get
        image.LatentCoder.decode = s2_decode
        range_coder.BitDecoder.code = flex_decide
        gaussian_tables.SymbolDecoder.code = family_code
        LedgerReader.floor = ledger_floor
        TokenDecoder.advance = decoder_advance

    def see(self, index: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        self.indexes += index.size
        self._digest.update(index.astype("<i8").tobytes() + symbols.astype("<i8").tobytes())
        return symbols

    def take(self) -> tuple[str, int, np.ndarray]:
        """Hash, number of table indexes and continuous indexes since the last call."""
        found = self._digest.hexdigest(), self.indexes, np.concatenate([*self.continuous, []])
        self.indexes, self.continuous, self._digest = 0, [], hashlib.sha256()
        return found


def walk(
    networks, conditions: torch.Tensor, latents: torch.Tensor, rows: int, columns: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(mean, index) of all steps of tec-s2's entropy networks over known latents (B, P, 320)."""
    for step in networks.steps(conditions, rows, columns, (True,) * len(GROUPS)):
        step.units = latents[:, step.places, step.channels]
        yield step.mean, step.index


@torch.inference_mode()
def batched_walk(frame: bytes) -> tuple[str, int]:
    """Walk the dates of a tec-s2 frame together and alone: hash and number of the equal indexes."""
    parsed = read_frame(frame)
    _, bands, height, width = parsed.header.shape4
    model = get_model("tec-s2", "029756bd")
    decoded = [
        model.decode_latents(section, (bands, height, width), parsed.header.quality)
        for section in parsed.payloads(SectionKind.LATENTS)
    ]
    latents = torch.from_numpy(np.stack([units for units, _ in decoded]))
    conditions = torch.cat([context.condition for _, context in decoded])
    size = -(-height // BLOCK), -(-width // BLOCK)
    digest, count = hashlib.sha256(), 0
    alone = [
        walk(model.coder.entropy, conditions[i : i + 1], latents[i : i + 1], *size)
        for i in range(len(latents))
    ]
    joint = walk(model.coder.entropy, conditions, latents, *size)
    for together, *single in zip(joint, *alone, strict=True):
        for part, values in enumerate(together):
            assert torch.equal(values, torch.cat([one[part] for one in single]))
            digest.update(values.numpy().tobytes())
        count += together[1].numel()
    return digest.hexdigest(), count


def main(folder: Path, name: str, threads: int) -> None:
    torch.set_num_threads(threads)
    if name == "no-onednn":
        torch.backends.mkldnn.enabled = False
    if name == "bf16":
        torch.set_float32_matmul_precision("medium")
    for kind, published in FAMILY.items():
        hub.load_codec(published, path=folder / f"{kind}.safetensors")
    written = folder / name
    written.mkdir(exist_ok=True)
    older = find_model("tec-s2").weights[1]
    specs = [("by-scale", quality, ChunkSpec(quality=quality)) for quality in QUALITIES]
    specs += [("tec-s2", q, ChunkSpec(quality=q, weights_sha256=older)) for q in QUALITIES]
    specs += [("tec-tt-s2", q, ChunkSpec(model="tec-tt-s2", quality=q)) for q in QUALITIES]
    specs += [("tec-flex-s2", q, ChunkSpec(model="tec-flex-s2", quality=q)) for q in QUALITIES[1:]]
    specs.append(("bounded", 5, ChunkSpec(max_error=5)))
    family = [(name, 4.0, ChunkSpec(model=name)) for name in FAMILY.values()]
    with np.load(folder / "cubes.npz") as cubes:
        for key in cubes.files:
            all_bands = cubes[key].shape[1] == 12
            for label, quality, spec in specs + family * all_bands:
                frame = encode_chunk(cubes[key], spec)
                (written / f"{key}.{label}.{quality}.tec").write_bytes(frame)

    frames: dict[str, tuple[str, bytes]] = {}
    for path in sorted(folder.glob("*/*.tec")):
        data = path.read_bytes()
        frames.setdefault(hashlib.sha256(data).hexdigest(), (path.name.split(".")[1], data))
    found, arrays, recorder = {}, {}, Recorder()
    for digest, (model, data) in frames.items():
        # A frame whose latents come out differently raises here: that is the first test.
        arrays[digest] = decode_chunk(data)
        if model == "by-scale":  # the core compared these with the latents that it decoded
            checksums = [s.latents_crc for s in read_frame(data).of(SectionKind.LATENTS)]
            recorder.see(arrays[digest], np.array(checksums))
        latents, count, continuous = recorder.take()
        found[digest] = {"model": model, "latents": latents, "indexes": count}
        arrays[f"continuous {digest}"] = continuous
        if model == "tec-s2":
            found[digest]["walk"], found[digest]["walked"] = batched_walk(data)
            recorder.take()
    with ThreadPoolExecutor(4) as pool:
        batch = pool.map(lambda item: decode_chunk(item[1]), frames.values())
        for digest, pixels in zip(frames, batch, strict=True):
            difference = np.abs(pixels.astype(np.int64) - arrays[digest])
            found[digest]["batch"] = int(difference.max())
    own = {
        path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in written.glob("*.tec")
    }
    np.savez(folder / f"{name}.npz", **arrays)
    (folder / f"{name}.json").write_text(json.dumps({"frames": own, "found": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
