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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from tec_zarr import ChunkSpec, decode_chunk, encode_chunk
from tec_zarr.frame.frame import SectionKind, read_frame
from tec_zarr.terracodec import gaussian_tables, hub
from tec_zarr.terracodec.ledger import LedgerReader
from tec_zarr.terracodec.tt import TokenDecoder

QUALITIES = (2.0, 5.0, 7.5)
EMBEDDED = ("tec-s2", "tec-tt-s2", "tec-flex-s2")
FAMILY = {
    "fp": "terracodec_v1_fp_s2l2a",
    "elic": "terracodec_v1_elic_s2l2a",
    "tt": "terracodec_v1_tt_s2l2a",
    "flex": "flextec_v1_s2l2a",
}


class Recorder:
    """Hashes the table indexes and symbols of the published models' decoders, and the checksums of
    the embedded models; keeps the continuous indexes.
    """

    def __init__(self) -> None:
        self.indexes = 0
        self.continuous: list[np.ndarray] = []
        self._digest = hashlib.sha256()
        code = gaussian_tables.SymbolDecoder.code
        floor, advance = LedgerReader.floor, TokenDecoder.advance

        def family_code(decoder, ids, tables):
            return self.see(ids, code(decoder, ids, tables))

        def decoder_advance(decoder, inputs):
            answers = advance(decoder, inputs)
            for values in answers:
                self._digest.update(values.numpy().tobytes())
            return answers

        def ledger_floor(reader, values):
            self.continuous.append(values.ravel().copy())
            return floor(reader, values)

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
    specs = [(model, q, ChunkSpec(model=model, quality=q)) for model in EMBEDDED for q in QUALITIES]
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
        if model in EMBEDDED:  # the core compared these with the latents that it decoded
            checksums = [s.latents_crc for s in read_frame(data).of(SectionKind.LATENTS)]
            recorder.see(arrays[digest], np.array(checksums))
        latents, count, continuous = recorder.take()
        found[digest] = {"model": model, "latents": latents, "indexes": count}
        arrays[f"continuous {digest}"] = continuous
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
