"""Compile the core when the package is installed.

The core (`_core.so`, `.dylib` or `.dll`) is portable C11 and everything needs it: without a
compiler the installation fails and says why.

The page of ``tec-zarr view`` goes into the wheel if ``make readers`` has made it.

With ``TEC_ZARR_TARGET=manylinux_2_17_aarch64`` (or another of `TARGETS`) the wheel is for that
platform: ``zig cc`` of the package ziglang compiles its core.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = "tec_zarr/native"
PAGE = "tec_zarr/face/page"  # of `tec-zarr view`: `make readers` makes it
# Every operation on floats is rounded by itself: the results are the same everywhere.
OPTIONS = (
    "-O3", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fwrapv", "-fPIC", "-shared",
)  # fmt: skip


class Target(NamedTuple):
    """A platform that wheels are made for: its name for ``zig cc``, and that of the library."""

    zig: str
    library: str = "_core.so"


#: By platform tag. The numbers are the oldest glibc, musl and macOS.
TARGETS = {
    "manylinux_2_17_x86_64": Target("x86_64-linux-gnu.2.17"),
    "manylinux_2_17_aarch64": Target("aarch64-linux-gnu.2.17"),
    "musllinux_1_2_x86_64": Target("x86_64-linux-musl"),
    "musllinux_1_2_aarch64": Target("aarch64-linux-musl"),
    "macosx_11_0_arm64": Target("aarch64-macos.11.0", "_core.dylib"),
    "macosx_11_0_x86_64": Target("x86_64-macos.11.0", "_core.dylib"),
    "win_amd64": Target("x86_64-windows-gnu", "_core.dll"),
}
SUFFIXES = {"darwin": ".dylib", "win32": ".dll"}


class NativeHook(BuildHookInterface):
    """Adds the libraries to the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the libraries, here or for another platform."""
        del version
        sources = [f"{NATIVE}/{c.name}" for c in sorted(Path(self.root, NATIVE).glob("*.c"))]
        build_data["artifacts"].append(f"{PAGE}/**")
        tag = os.environ.get("TEC_ZARR_TARGET")
        if tag:
            target = TARGETS[tag]
            library = f"build/wheels/{tag}/{target.library}"
            Path(self.root, library).parent.mkdir(parents=True, exist_ok=True)
            zig = [sys.executable, "-m", "ziglang", "cc", "-target", target.zig]
            self._compile(library, sources, zig)
            built = str(Path(self.root, library))
            build_data["force_include"][built] = f"{NATIVE}/{target.library}"
            build_data.update(pure_python=False, tag=f"py3-none-{tag}")
            return
        core = f"{NATIVE}/_core{SUFFIXES.get(sys.platform, '.so')}"
        self._compile(core, sources)
        build_data["artifacts"].append(core)
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data.update(pure_python=False, tag=f"py3-none-{tag}")

    def _compile(
        self, library: str, sources: list[str], compiler: list[str] | None = None
    ) -> None:
        """Compile beside the library and move it there: a process that uses it keeps its own."""
        final = Path(self.root, library)
        built = final.parent / "new" / final.name  # Windows' and macOS' libraries hold their name
        built.parent.mkdir(exist_ok=True)
        compiler = compiler or shlex.split(os.environ.get("CC", "cc"))
        paths = [str(Path(self.root, source)) for source in sources]
        try:
            subprocess.run(
                [*compiler, *OPTIONS, "-o", str(built), *paths, "-lm"],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", "") or str(error)
            raise RuntimeError(
                f"tec_zarr needs a C11 compiler to be installed from source ({compiler[0]!r}, or "
                f"what CC names): {reason}"
            ) from error
        else:
            built.replace(final)
        finally:
            shutil.rmtree(built.parent)
