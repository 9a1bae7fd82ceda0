"""Register ``.tec`` with xarray as soon as xarray and tec_zarr are both imported, in any order.

Importing xarray takes half a second. Zarr imports tec_zarr for every array encoded with TEC, also
in programs that do not use xarray. So this module does not import xarray. If xarray is not
imported yet, a finder in ``sys.meta_path`` registers the accessors when it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def install() -> None:
    """Register the accessors now, or when xarray is imported."""
    xarray = sys.modules.get("xarray")
    if xarray is not None and hasattr(xarray, "register_dataset_accessor"):
        _register(xarray)
    elif not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def _register(xarray: Any) -> None:
    if not hasattr(xarray.DataArray, "tec"):
        xarray.register_dataarray_accessor("tec")(_array)
        xarray.register_dataset_accessor("tec")(_dataset)
        xarray.register_datatree_accessor("tec")(_tree)


def _array(obj: Any) -> Any:
    from tec_zarr.face.accessor import TecArray

    return TecArray(obj)


def _dataset(obj: Any) -> Any:
    from tec_zarr.face.accessor import TecDataset

    return TecDataset(obj)


def _tree(obj: Any) -> Any:
    from tec_zarr.face.accessor import TecTree

    return TecTree(obj)


class _Watch(MetaPathFinder):
    """Lets the other finders find xarray, and registers the accessors after its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "xarray":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            # Removed only now: some callers of find_spec ask for xarray and do not import it.
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register(module)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
