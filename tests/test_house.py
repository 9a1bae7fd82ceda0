"""The house: rooms one above the other, arrows that point down, torch where it belongs."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "tec_zarr"
#: From top to bottom, as in CONTRIBUTING.md. A room may import itself and what is below it.
ROOMS = [
    "face", "inpaint", "compare", "recompression", "stac", "cubes", "training", "stores",
    "terracodec", "codec", "models", "bounds", "grids", "frame", "native",
    "interrupted", "metrics", "sentinel2", "config", "errors",
]  # fmt: skip
TORCH = {"training", "terracodec"}
LINES = 500


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(path: Path, typing: bool = True) -> set[str]:
    """What a file imports anywhere, by dotted name; ``typing``: what only annotations need, too."""
    found = set()
    nodes = [ast.parse(path.read_text("utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in full}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing:
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
    return found


# The package itself is the door: it names what it has and loads nothing.
ARROWS = {name: (imports(path) & MODULES.keys()) - {name} for name, path in MODULES.items()}
INSIDE = {name: arrows - {"tec_zarr"} for name, arrows in ARROWS.items() if name != "tec_zarr"}


def room(name: str) -> str:
    return name.split(".")[1]


def test_every_module_has_a_room():
    assert {room(name) for name in INSIDE} == set(ROOMS)


@pytest.mark.parametrize("name", INSIDE)
def test_arrows_point_down(name):
    above = ROOMS[: ROOMS.index(room(name))]
    assert not [other for other in INSIDE[name] if room(other) in above]
    assert "tec_zarr" not in ARROWS[name] or room(name) == "face"


def test_no_modules_import_each_other_in_a_circle():
    rest = dict(INSIDE)
    while leaves := [name for name, arrows in rest.items() if not arrows & rest.keys()]:
        rest = {name: arrows for name, arrows in rest.items() if name not in leaves}
    assert not sorted(rest)


def test_torch_stays_in_its_rooms():
    users = {n for n, path in MODULES.items() if any(
        module.split(".")[0] == "torch" for module in imports(path, typing=False)
    )}  # fmt: skip
    assert not {name for name in users if room(name) not in TORCH}


def test_what_zarr_keeps_to_itself_is_used_in_one_module():
    users = {n for n, path in MODULES.items() if any(
        module.startswith("zarr.core") for module in imports(path, typing=False)
    )}  # fmt: skip
    assert users <= {"tec_zarr.stores.objects"}


def test_no_module_is_too_long_to_read():
    long = {n: len(path.read_text("utf-8").splitlines()) for n, path in MODULES.items()}
    assert not {name: n for name, n in long.items() if n > LINES}
