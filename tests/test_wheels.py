"""The wheels of ``make wheels``: tag, contents, size, and what can be run of them here.

They are looked for in ``dist``. Of what is not there, and of what this machine cannot run, tests
are skipped: the library for aarch64 runs under ``qemu-aarch64`` with the C library of
``libc6-arm64-cross``, that for musl on x86-64 with Debian's ``musl``, that for Windows under
``wine``. Older processors of x86-64 are those of ``qemu-x86_64``. Nothing here runs those for musl
on aarch64 and for macOS, which are only inspected.
"""

import email
import fnmatch
import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import make_golden
import pytest
from core_calls import Recording

from tec_zarr import encode_chunk
from tec_zarr.native.core import kernels

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
WEIGHTS = ROOT / "tec_zarr/models/weights"
NATIVE = "tec_zarr/native"
MOST_BYTES = 15e6
SYSROOT = Path("/usr/aarch64-linux-gnu")
NEEDED = ["tec_model_open", "tec_tile_decode", "tec_tile_encode", "tec_walk"]
TAGS = {
    "manylinux_2_17_x86_64": "_core.so", "manylinux_2_17_aarch64": "_core.so",
    "musllinux_1_2_x86_64": "_core.so", "musllinux_1_2_aarch64": "_core.so",
    "macosx_11_0_arm64": "_core.dylib", "macosx_11_0_x86_64": "_core.dylib",
    "win_amd64": "_core.dll",
}  # fmt: skip


def wheel(tag):
    found = sorted(DIST.glob(f"tec_zarr-*-py3-none-{tag}.whl"))
    if not found:
        pytest.skip(f"no wheel for {tag} in dist: make wheels")
    return found[-1]


def library(tag):
    with zipfile.ZipFile(wheel(tag)) as archive:
        return archive.read(f"{NATIVE}/{TAGS[tag]}")


def test_the_tags_are_those_that_are_built(monkeypatch):
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert {tag: target.library for tag, target in module.TARGETS.items()} == TAGS


def test_cibuildwheel_makes_the_same_wheels():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    made = {}
    for override in settings["overrides"]:
        (identifier,) = fnmatch.filter(settings["build"], override["select"])
        made[identifier] = override["environment"]["TEC_ZARR_TARGET"]
    assert set(made) == set(settings["build"])
    assert sorted(made.values()) == sorted(TAGS)
    for identifier, tag in made.items():
        system, _, machine = identifier.partition("-")[2].partition("_")
        assert tag.startswith(system)
        assert tag.endswith(machine)


@pytest.mark.parametrize("tag", TAGS)
def test_a_wheel_holds_the_package_and_one_library(tag):
    path = wheel(tag)
    assert path.stat().st_size < MOST_BYTES
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        (said,) = (n for n in names if n.endswith(".dist-info/WHEEL"))
        lines = archive.read(said).decode().splitlines()
    assert f"Tag: py3-none-{tag}" in lines
    assert "Root-Is-Purelib: false" in lines
    libraries = {n for n in names if n.endswith((".so", ".dylib", ".dll"))}
    assert libraries == {f"{NATIVE}/{TAGS[tag]}"}
    index = json.loads((WEIGHTS / "index.json").read_text())
    weights = {w["file"] for model in index.values() for w in model["weights"]}
    assert {f"tec_zarr/models/weights/{name}" for name in weights} <= names
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "tec_zarr").rglob("*.py")}
    assert sources <= names
    page = {"index.html", "view.css", "app/page.js", "app/worker.js", "files/tec.wasm"}
    assert {f"tec_zarr/face/page/{name}" for name in page} <= names
    assert not [n for n in names if n.endswith((".c", ".h", ".pyc"))]


@pytest.mark.parametrize("tag", [tag for tag in TAGS if "linux" in tag])
def test_libraries_for_linux(tag):
    data = library(tag)
    machine = 183 if "aarch64" in tag else 62
    assert data[:4] == b"\x7fELF"
    assert data[4:6] == b"\x02\x01"  # 64 bits, little-endian
    assert struct.unpack_from("<H", data, 18) == (machine,)
    versions = {line.split(b"\0")[0] for line in data.split(b"GLIBC_")[1:]}
    if "musl" in tag:
        assert not versions
    else:
        assert versions
        assert all(tuple(map(int, v.split(b".")[:2])) <= (2, 17) for v in versions)
    assert all(name.encode() + b"\0" in data for name in NEEDED)


@pytest.mark.parametrize("tag", [tag for tag in TAGS if "macos" in tag])
def test_libraries_for_macos(tag):
    data = library(tag)
    magic, machine, _, kind, count = struct.unpack_from("<5I", data)
    assert magic == 0xFEEDFACF
    assert machine == (0x0100000C if "arm64" in tag else 0x01000007)
    assert kind == 6  # a dynamic library
    place, oldest, signed = 32, None, False
    for _ in range(count):
        command, size = struct.unpack_from("<2I", data, place)
        if command == 0x32:  # LC_BUILD_VERSION
            oldest = struct.unpack_from("<I", data, place + 12)[0]
        signed |= command == 0x1D  # LC_CODE_SIGNATURE, without which arm64 loads nothing
        place += size
    assert oldest is not None
    assert oldest >> 16 <= 11
    assert signed or "arm64" not in tag
    assert all(b"_" + name.encode() + b"\0" in data for name in NEEDED)


def test_the_library_for_windows():
    data = library("win_amd64")
    (header,) = struct.unpack_from("<I", data, 60)
    assert data[:2] == b"MZ"
    assert data[header : header + 6] == b"PE\0\0\x64\x86"
    assert b"_core.dll\0" in data  # the name that programs linked with it ask for
    assert all(name.encode() + b"\0" in data for name in NEEDED)  # exported by name


def test_the_wheel_of_this_machine_reads_golden_streams_without_a_compiler(tmp_path):
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("the wheel that is run here is for Linux on x86-64")
    with zipfile.ZipFile(wheel("manylinux_2_17_x86_64")) as archive:
        archive.extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, ROOT / "tests/installed.py"], check=True, cwd=tmp_path, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PATH": ""}, capture_output=True,
    )  # fmt: skip
    assert str(tmp_path / "site") in done.stdout


def test_a_fresh_environment_needs_the_wheel_alone(tmp_path):
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("the wheel that is run here is for Linux on x86-64")
    made = wheel("manylinux_2_17_x86_64")
    with zipfile.ZipFile(made) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        needs = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist")
    if any(need.startswith("torch") and "extra" not in need for need in needs):
        pytest.skip("the wheel still depends on torch")
    newest = shutil.which("python3.13") or sys.executable
    subprocess.run([newest, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--only-binary=:all:", made], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, ROOT / "tests/installed.py"], check=True, cwd=tmp_path, text=True,
        env={**environment, "PATH": ""}, capture_output=True,
    )  # fmt: skip
    assert "torch is not installed" in done.stdout


def compiled(name, tag, zig, folder, *sources):
    """The path of a program that is linked with the library of a wheel."""
    windows = tag.startswith("win")
    library_name = "_core.dll" if windows else "libtec.so"
    (folder / library_name).write_bytes(library(tag))
    linked = [folder / library_name] if windows else ["-L", folder, "-ltec"]
    program = folder / f"{name}.exe" if windows else folder / name
    dynamic = ["-dynamic"] if "musl" in zig else []
    subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", "-target", zig, *dynamic, "-O2", "-std=c11",
         "-I", ROOT / NATIVE, "-I", ROOT / "readers/c", *sources, *linked, "-o", program],
        check=True,
    )  # fmt: skip
    return str(program)


@pytest.fixture(scope="module")
def recording():
    """What the core is asked for when the arrays of all golden streams are encoded."""
    index, made = json.loads((WEIGHTS / "index.json").read_text()), Recording()
    for model in make_golden.MODELS:
        made.open((WEIGHTS / index[model]["weights"][0]["file"]).read_bytes())
        for name, (array, spec) in make_golden.cases(model).items():
            before = made.count
            encode_chunk(array, spec)  # loads what it needs, unrecorded
            with made.running():
                encode_chunk(array, spec)
            assert made.count > before or name in ("all-nodata", "constant"), name
    return made


def elsewhere(where, folder, kernel=""):
    """Tag, target of zig, and start of the command line, of a platform that runs here."""
    if where == "x86-64":
        if kernel and kernel not in kernels():
            pytest.skip(f"this processor does not have the kernel {kernel}")
        start = ["env", f"LD_LIBRARY_PATH={folder}", f"TEC_NATIVE={kernel}"]
        return "manylinux_2_17_x86_64", "x86_64-linux-gnu.2.17", start
    if where in ("Nehalem", "Haswell"):
        emulator = shutil.which("qemu-x86_64")
        if emulator is None:
            pytest.skip("needs qemu-user")
        settings = f"LD_LIBRARY_PATH={folder},TEC_NATIVE={kernel}"
        start = [emulator, "-cpu", where, "-E", settings]
        return "manylinux_2_17_x86_64", "x86_64-linux-gnu.2.17", start
    if where == "windows":
        wine = shutil.which("wine")
        if wine is None:
            pytest.skip("needs wine and wine64")
        return "win_amd64", "x86_64-windows-gnu", [
            "env", f"WINEPREFIX={folder.parent}/prefix", "WINEDEBUG=-all", wine
        ]  # fmt: skip
    if where == "musl":
        loader = Path("/lib/ld-musl-x86_64.so.1")
        if not loader.exists():
            pytest.skip("needs Debian's musl")
        start = [str(loader), "--library-path", str(folder)]
        return "musllinux_1_2_x86_64", "x86_64-linux-musl", start
    emulator = shutil.which("qemu-aarch64")
    if emulator is None or not (SYSROOT / "lib/libc.so.6").exists():
        pytest.skip("needs qemu-user and libc6-arm64-cross")
    settings = f"LD_LIBRARY_PATH={folder},TEC_NATIVE={kernel}"
    start = [emulator, "-L", str(SYSROOT), "-E", settings]
    return "manylinux_2_17_aarch64", "aarch64-linux-gnu.2.17", start


@pytest.mark.parametrize(
    ("where", "kernel"),
    [
        *(("x86-64", kernel) for kernel in ("vnni", "avx2", "sse41", "plain")),
        ("Haswell", "avx2"), ("Nehalem", "sse41"),
        ("aarch64", "dot"), ("aarch64", "plain"), ("musl", ""), ("windows", ""),
    ],
)  # fmt: skip
def test_kernels_and_platforms_encode_the_same(tmp_path, recording, where, kernel):
    pytest.importorskip("ziglang")
    folder = tmp_path / "run"
    tag, zig, start = elsewhere(where, folder, kernel)
    wheel(tag)
    folder.mkdir()
    program = compiled("wheel_check", tag, zig, folder, ROOT / "tests/wheel_check.c")
    (folder / "calls").write_bytes(recording.calls)
    subprocess.run([*start, program, "calls", "results"], check=True, cwd=folder)
    assert (folder / "results").read_bytes() == recording.results


@pytest.mark.parametrize("where", ["x86-64", "Nehalem", "aarch64", "musl", "windows"])
def test_platforms_decode_every_golden_stream(tmp_path, where):
    pytest.importorskip("ziglang")
    folder = tmp_path / "run"
    tag, zig, start = elsewhere(where, folder)
    wheel(tag)
    subprocess.run([sys.executable, ROOT / "readers/kit/make.py", tmp_path / "kit"], check=True)
    folder.mkdir()
    kit = tmp_path / "kit/c"
    sources = [kit / name for name in ("tec_decode.c", "models.c", "embedded.c")]
    program = compiled("tec_decode", tag, zig, folder, *sources)
    subprocess.run([sys.executable, tmp_path / "kit/check.py", *start, program], check=True)


@pytest.mark.parametrize("compiler", ["cc", f"{sys.executable} -m ziglang cc"])
def test_the_sdist_builds_with_other_compilers(compiler, tmp_path):
    pytest.importorskip("hatchling")
    pytest.importorskip("ziglang")
    found = sorted(DIST.glob("tec_zarr-*.tar.gz"))
    if not found:
        pytest.skip("no sdist in dist: make wheels")
    with tarfile.open(found[-1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=folder,
                   check=True, env={**os.environ, "CC": compiler})  # fmt: skip
    (made,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(made) as archive:
        assert f"{NATIVE}/_core.so" in archive.namelist()


def test_an_index_takes_the_files():
    pytest.importorskip("twine")
    found = [path for path in DIST.glob("tec_zarr-*") if path.suffix in (".whl", ".gz")]
    if not found:
        pytest.skip("nothing in dist: make wheels")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *found], check=True)


def test_the_sdist_holds_what_building_needs():
    found = sorted(DIST.glob("tec_zarr-*.tar.gz"))
    if not found:
        pytest.skip("no sdist in dist: make wheels")
    assert found[-1].stat().st_size < MOST_BYTES
    with tarfile.open(found[-1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / NATIVE).glob("*.[ch]")}
    assert sources | {"hatch_build.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not [n for n in names if n.endswith((".so", ".dylib", ".dll"))]
