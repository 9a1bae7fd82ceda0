"""The wheels of ``make wheels``: tag, contents, size, and what can be run of them here.

They are looked for in ``dist``. Of what is not there, and of what this machine cannot run, tests
are skipped: the aarch64 library runs under ``qemu-aarch64`` with the C library of
``libc6-arm64-cross``, the one for Windows under ``wine``. Nothing here runs musl's or macOS', which
are only inspected.
"""

import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tec_zarr.codec.decode import tiles_of
from tec_zarr.frame.frame import read_frame

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
GOLDEN = ROOT / "tests" / "fixtures" / "tec-s2"
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
    index = json.loads((ROOT / "tec_zarr/models/weights/index.json").read_text())
    weights = {w["file"] for model in index.values() for w in model["weights"]}
    assert {f"tec_zarr/models/weights/{name}" for name in weights} <= names
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "tec_zarr").rglob("*.py")}
    assert sources <= names
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
    code = """
import sys, pathlib, numpy, tec_zarr
from tec_zarr.native import core
assert str(pathlib.Path(core.__file__)).startswith(sys.argv[1]), core.__file__
folder = pathlib.Path(sys.argv[2])
pixels = numpy.load(folder / "pixels.npz")
names = sorted(p.stem for p in folder.glob("*.tec"))
for name in names:
    back = tec_zarr.decode_chunk((folder / f"{name}.tec").read_bytes())
    numpy.testing.assert_array_equal(back, pixels[name])
assert len(names) > 10 and "torch" not in sys.modules
frame = tec_zarr.encode_chunk(pixels["one-date"], tec_zarr.ChunkSpec())
assert tec_zarr.decode_chunk(frame).shape == pixels["one-date"].shape
"""
    newest = newest_golden()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PATH": ""}
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site"), str(newest)],
        check=True, env=environment, cwd=tmp_path,
    )  # fmt: skip


def newest_golden():
    index = json.loads((ROOT / "tec_zarr/models/weights/index.json").read_text())
    return GOLDEN / index["tec-s2"]["weights"][0]["sha256"][:16]


def cases():
    """Sections of the golden streams as wheel_check.c takes them, and their checksums."""
    out, sums = bytearray(), []
    for path in sorted(newest_golden().glob("*.tec")):
        frame = read_frame(path.read_bytes())
        _, _, tiles = tiles_of(frame)
        for tile in tiles:
            quality = round(4096 * frame.header.quality)
            for section, crc in zip(tile.sections, tile.latents_crc, strict=True):
                out += struct.pack("<5i", *tile.shape[1:], quality, len(section)) + section
                sums.append(crc)
    return bytes(out), sums


def built(tag, zig, folder):
    """wheel_check with the library of a wheel, and the file of its cases."""
    pytest.importorskip("ziglang")
    windows = tag.startswith("win")
    name, program = ("_core.dll", "wheel_check.exe") if windows else ("libtec.so", "wheel_check")
    (folder / name).write_bytes(library(tag))
    linked = [str(folder / name)] if windows else ["-L", str(folder), "-ltec"]
    subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", "-target", zig, "-O2", "-std=c11",
         "-I", str(ROOT / NATIVE), str(ROOT / "tests/wheel_check.c"), *linked,
         "-o", str(folder / program)], check=True,
    )  # fmt: skip
    data, sums = cases()
    (folder / "cases").write_bytes(data)
    index = json.loads((ROOT / "tec_zarr/models/weights/index.json").read_text())
    weights = ROOT / "tec_zarr/models/weights" / index["tec-s2"]["weights"][0]["file"]
    return [str(folder / program), str(weights), str(folder / "cases")], sums


def checksums(results, data):
    """Checksums that wheel_check found, in order."""
    found, place, start = [], 0, 0
    while start < len(data):
        bands, height, width, _, length = struct.unpack_from("<5i", data, start)
        start += 20 + length
        status, checksum = struct.unpack_from("<iI", results, place)
        assert status == 0
        found.append(checksum)
        place += 8 + 4 * bands * height * width
        place += 8 + struct.unpack_from("<q", results, place)[0]
    assert place == len(results)
    return found


def results_of(tag, zig, folder, start=(), **environment):
    """What wheel_check writes with the library of a wheel. Its checksums are the frames'."""
    folder.mkdir()
    command, sums = built(tag, zig, folder)
    subprocess.run([*start, *command, str(folder / "results")], check=True, cwd=folder,
                   env={**os.environ, **environment})  # fmt: skip
    results = (folder / "results").read_bytes()
    assert checksums(results, (folder / "cases").read_bytes()) == sums
    return results


@pytest.fixture(scope="module")
def on_x86(tmp_path_factory):
    folder = tmp_path_factory.mktemp("x86") / "run"
    tag = "manylinux_2_17_x86_64"
    return results_of(tag, "x86_64-linux-gnu.2.17", folder, LD_LIBRARY_PATH=str(folder))


def test_aarch64_gives_the_same_samples_and_bytes_as_x86_64(tmp_path, on_x86):
    emulator = shutil.which("qemu-aarch64")
    if emulator is None or not (SYSROOT / "lib/libc.so.6").exists():
        pytest.skip("needs qemu-user and libc6-arm64-cross")
    folder = tmp_path / "run"
    start = [emulator, "-L", str(SYSROOT), "-E", f"LD_LIBRARY_PATH={folder}"]
    assert results_of("manylinux_2_17_aarch64", "aarch64-linux-gnu.2.17", folder, start) == on_x86


def test_windows_gives_the_same_samples_and_bytes_as_linux(tmp_path, on_x86):
    wine = shutil.which("wine")
    if wine is None:
        pytest.skip("needs wine and wine64")
    prefix = {"WINEPREFIX": str(tmp_path / "prefix"), "WINEDEBUG": "-all"}
    found = results_of("win_amd64", "x86_64-windows-gnu", tmp_path / "run", [wine], **prefix)
    assert found == on_x86


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
