"""What exactness rests on, and what it costs, in numbers.

    python benchmarks/exactness.py

Three parts, written to ``exactness.json``:

- the test matrix of ``tests/test_exactness.py`` on larger cubes: checksums of the embedded models
  that were compared between CPU settings, how many differ; deviation of the continuous indexes of
  a small ELIC on their way through a stream; share of pixels that differ;
- bytes of ELIC's ledgers, and time of a TT entropy network in whole numbers and in float32.

Times are processor seconds of one thread, the best of three: the machine may be busy. Run it with
``OPENBLAS_NUM_THREADS=1``: a second thread of NumPy's that waits counts too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from environment import ROOT, commit, environment

from tec_zarr.cubes import synthetic
from tec_zarr.models.registry import get_model
from tec_zarr.terracodec.exact import exact
from tec_zarr.terracodec.ledger import EPSILON, LedgerWriter
from tec_zarr.terracodec.tt import EntropyTransformer

sys.path.insert(0, str(ROOT / "tests"))

from exactness_worker import EMBEDDED
from test_exactness import SETTINGS, run_settings
from test_family_codec import codec, scene


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of ``work``, the best of three."""
    found = []
    for _ in range(3):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def matrix(size: int) -> dict:
    """Compare all settings with the first one that decoded the same frame."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Ten bands: for the embedded models only. Twelve: for every model.
        wide = synthetic.cube(dates=2, size=size, seed=3, nodata_edge=False).values[:, :10]
        small = synthetic.cube(dates=2, size=72, seed=11).values
        np.savez(folder / "cubes.npz", wide=wide, small=small)
        results = run_settings(folder, SETTINGS)
    rows, compared, differ = [], 0, 0
    agreed: dict = {}
    for setting, result in results.items():
        shares: dict = {}
        deviation, continuous = 0.0, 0
        for frame, item in result["found"].items():
            first, pixels, indexes = agreed.setdefault(
                frame,
                (item, result["arrays"][frame], result["arrays"][f"continuous {frame}"]),
            )
            if first is not item and item["model"] in EMBEDDED:
                compared += item["indexes"]
                differ += 0 if item["latents"] == first["latents"] else item["indexes"]
            here = result["arrays"][f"continuous {frame}"]
            if first is not item and here.size:
                deviation = max(deviation, float(np.abs(here - indexes).max()))
                continuous += here.size
            changed = result["arrays"][frame].astype(np.int64) - pixels
            shares.setdefault(item["model"], []).append(changed)
        rows.append(
            {
                "setting": setting,
                "ledger_indexes": continuous,
                "ledger_largest_deviation": deviation,
                "pixels_that_differ": {
                    model: {
                        "share": float(np.mean(np.concatenate([d.ravel() for d in ds]) != 0)),
                        "largest_dn": int(max(np.abs(d).max() for d in ds)),
                    }
                    for model, ds in sorted(shares.items())
                },
            }
        )
    return {
        "settings": rows,
        "checksums_of_embedded_models_compared": compared,
        "that_differ": differ,
        "epsilon": EPSILON,
    }


def ledger() -> dict:
    """Bytes of the ledgers in the stream of a small ELIC, per index."""
    asked, entries, size = 0, 0, 0
    plain = LedgerWriter.to_bytes

    def to_bytes(writer: LedgerWriter) -> bytes:
        nonlocal asked, entries, size
        data = plain(writer)
        asked, entries, size = asked + writer._asked, entries + len(writer), size + len(data)
        return data

    LedgerWriter.to_bytes = to_bytes  # type: ignore[method-assign]
    try:
        encoded = codec("elic").encode(scene(2, 12, 256, 256), 8.0, None)
    finally:
        LedgerWriter.to_bytes = plain  # type: ignore[method-assign]
    return {
        "indexes": asked,
        "ledger_entries": entries,
        "ledger_bytes": size,
        "stream_bytes": sum(map(len, encoded.sections)),
    }


@torch.inference_mode()
def tt_time() -> dict:
    """Processor seconds of a TT entropy network (width 192) on eight windows, by arithmetic."""
    torch.manual_seed(0)
    plain = EntropyTransformer(192, 192, 16, (2, 2, 2)).eval()
    found = {}
    for name, network in (("float32", plain), ("whole numbers", exact(plain))):
        context = torch.randn(8, 2, 64, 192)
        tokens = torch.randn(8, 16, 192)

        def work(network=network, context=context, tokens=tokens) -> None:
            joint = network.join_dates([network.encode_date(context[:, i]) for i in (0, 1)])
            network.predict(tokens, joint)

        found[name] = seconds(work)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=160, help="pixels of the matrix's cube")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        **environment(),
        "commit": commit(),
        "weights_sha256": get_model("tec-s2").weights_sha256,
        "elic_ledger": ledger(),
        "tt_seconds": tt_time(),
        "matrix": matrix(options.size),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "exactness.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
