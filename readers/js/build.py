"""Compile the decoder to WebAssembly, put it beside the weights, and bundle ``tec-zarr view``.

    python readers/js/build.py

Needs the packages hatchling and ziglang, Node.js, and the npm packages (``npm ci``). There are two
modules: for browsers with and without SIMD. Writes ``readers/js/files`` and ``tec_zarr/face/page``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "readers" / "c")]

from weights import core_weights  # noqa: E402

from hatch_build import NATIVE, OPTIONS, PAGE  # noqa: E402

FILES = HERE / "files"
MODULES = {"tec.wasm": ["-msimd128"], "tec-plain.wasm": []}
# Zig puts the stack below the data: what overflows it stops the module and changes nothing.
WASM = [
    "-target", "wasm32-wasi", "-mexec-model=reactor", "-Dgetenv=no_environment",
    "-Wl,-s", "-Wl,-z,stack-size=1048576",
]  # fmt: skip


def main() -> None:
    """Make all files anew."""
    shutil.rmtree(FILES, ignore_errors=True)
    FILES.mkdir()
    sources = [str(p) for p in sorted((ROOT / NATIVE).glob("*.c"))]
    options = [option for option in OPTIONS if option not in ("-fPIC", "-shared")]
    for name, more in MODULES.items():
        subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", *WASM, *options, *more, "-I",
             str(ROOT / NATIVE), "-o", str(FILES / name), *sources, str(HERE / "shim.c")],
            check=True,
        )  # fmt: skip
        print(f"{name}: {(FILES / name).stat().st_size} bytes")
    weights = {}
    for _, file, sha256 in core_weights(ROOT / "tec_zarr/models/weights"):
        shutil.copy(file, FILES)
        weights[sha256[:16]] = {"file": file.name, "sha256": sha256}
    listed = json.dumps(weights, indent=2)
    (FILES / "weights.js").write_text(
        f"// Weights by the first digits of their SHA-256.\nexport const WEIGHTS = {listed};\n"
    )
    shutil.copy(ROOT / "LICENSE", HERE)
    subprocess.run(["node", str(HERE.parent / "view/build.mjs"), str(ROOT / PAGE)], check=True)


if __name__ == "__main__":
    main()
