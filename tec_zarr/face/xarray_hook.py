"""Make ``.tec`` known to xarray as soon as both are imported, whichever comes first.

Importing xarray costs half a second, and Zarr loads tec_zarr for every array that TEC encoded,
also in programs without xarray. So xarray is not imported here: where it is not yet, its import
is watched.
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
    """Lets the usual finders find xarray, and registers after it was executed."""

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
            if self in sys.meta_path:  # not before: some only ask whether there is an xarray
                sys.meta_path.remove(self)
            _register(module)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
