"""Compile what decoding spends its time on, where the package is installed and a compiler is there.

Without a compiler, or on a processor that is not x86-64, nothing is built and torch does the same.
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

SOURCES = "tec_zarr/native/s2.c"
LIBRARY = "tec_zarr/native/_s2.so"
# Every operation on floats is rounded by itself: the results are the same everywhere.
OPTIONS = (
    "-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fwrapv", "-fPIC", "-shared",
)  # fmt: skip


class NativeHook(BuildHookInterface):
    """Adds the library to the wheel, or leaves the wheel as it is."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        del version
        library = Path(self.root, LIBRARY)
        library.unlink(missing_ok=True)
        if os.name != "posix" or platform.machine() not in ("x86_64", "amd64", "AMD64"):
            return
        compiler = shlex.split(os.environ.get("CC", "cc"))
        command = [*compiler, *OPTIONS, "-o", str(library), str(Path(self.root, SOURCES)), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", "") or str(error)
            self.app.display_warning(f"decoding is not compiled, torch will do it: {reason}")
            library.unlink(missing_ok=True)
            return
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data.update(pure_python=False, tag=f"py3-none-{tag}")
        build_data["artifacts"].append(LIBRARY)
