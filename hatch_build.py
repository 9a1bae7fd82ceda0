"""Compile the core when the package is installed.

The core (`_core.so`) is portable C11 and everything needs it: without a compiler the installation
fails and says why. The decoder of the temporal models' latents (`_s2.so`) is for x86-64 processors;
elsewhere torch does the same.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "tec_zarr/native"
LATENTS = (f"{NATIVE}/_s2.so", [f"{NATIVE}/s2.c"])
# Every operation on floats is rounded by itself: the results are the same everywhere.
OPTIONS = (
    "-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fwrapv", "-fPIC", "-shared",
)  # fmt: skip


class NativeHook(BuildHookInterface):
    """Adds the libraries to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        del version
        core = f"{NATIVE}/_core.so"
        sources = sorted(Path(self.root, NATIVE).glob("*.c"))
        self._compile(core, [f"{NATIVE}/{p.name}" for p in sources if p.name != "s2.c"])
        build_data["artifacts"].append(core)
        if os.name == "posix" and platform.machine() in ("x86_64", "amd64", "AMD64"):
            self._compile(*LATENTS)
            build_data["artifacts"].append(LATENTS[0])
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data.update(pure_python=False, tag=f"py3-none-{tag}")

    def _compile(self, library: str, sources: list[str]) -> None:
        """Compile beside the library and move it there: a process that uses it keeps its own."""
        built = Path(self.root, library + ".new")
        compiler = shlex.split(os.environ.get("CC", "cc"))
        paths = [str(Path(self.root, source)) for source in sources]
        try:
            subprocess.run(
                [*compiler, *OPTIONS, "-o", str(built), *paths, "-lm"],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
        except (OSError, subprocess.CalledProcessError) as error:
            built.unlink(missing_ok=True)
            reason = getattr(error, "stderr", "") or str(error)
            raise RuntimeError(
                f"tec_zarr needs a C11 compiler to be installed from source ({compiler[0]!r}, or "
                f"what CC names): {reason}"
            ) from error
        built.replace(Path(self.root, library))
