"""The accessor ``.tec`` of DataArray, Dataset and DataTree: tec_zarr's functions as methods.

Every method calls the function that its docstring names. xarray keeps one accessor for each
object. No method imports torch before it computes a chunk.
:mod:`tec_zarr.face.xarray_hook` registers the accessors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from tec_zarr.codec.options import takes_options
from tec_zarr.compare.report import preview, report
from tec_zarr.cubes.encoding import drop_encoding, encoding
from tec_zarr.cubes.simulate import simulate, weigh
from tec_zarr.inpaint.clouds import inpaint_clouds
from tec_zarr.inpaint.masks import DILATE, Mask
from tec_zarr.inpaint.regular import regularize

if TYPE_CHECKING:
    import pandas as pd

    from tec_zarr.terracodec.codec import FamilyModel


class _TecAccessor:
    """Methods that DataArray, Dataset and DataTree share."""

    def __init__(self, obj: Any) -> None:
        self._obj = obj

    @takes_options(encoding)
    def encoding(self, **options: Any) -> dict[str, dict[str, Any]]:
        """Encoding for ``to_zarr``: `tec_zarr.encoding`."""
        return encoding(self._obj, **options)

    def to_zarr(self, store: Any, *arguments: Any, **options: Any) -> Any:
        """Write with TEC: `tec_zarr.face.write.to_zarr`.

        It takes the arguments of xarray's ``to_zarr``, and options of `tec_zarr.encoding`.
        """
        from tec_zarr.face.write import to_zarr

        return to_zarr(self._obj, store, *arguments, **options)

    def decode(self) -> Any:
        """Same data without the encoding of its store: `tec_zarr.drop_encoding`."""
        return drop_encoding(self._obj)

    @takes_options(encoding)
    def simulate(self, **options: Any) -> Any:
        """The data as they will be after TEC, lazily: `tec_zarr.cubes.simulate.simulate`."""
        return simulate(self._obj, **options)

    @takes_options(encoding)
    def weigh(self, **options: Any) -> int:
        """Bytes that the data will take with TEC: `tec_zarr.cubes.simulate.weigh`."""
        return weigh(self._obj, **options)

    def report(
        self, original: xr.DataArray | xr.Dataset, *, html: str | Path | None = None
    ) -> pd.DataFrame:
        """Errors of the data against ``original``: `tec_zarr.compare.report.report`."""
        return report(self._obj, original, html=html)

    def preview(self, time: int = 0) -> xr.DataArray:
        """True-colour picture of one date: `tec_zarr.compare.report.preview`."""
        return preview(self._obj, time)

    def harmonize(
        self, *, items: Iterable[Any] | None = None, offset: int | Sequence[int] | None = None
    ) -> xr.Dataset:
        """Canonical cube with the +1000 DN offset removed: `tec_zarr.harmonize`."""
        from tec_zarr.stac.canonical import harmonize

        return harmonize(self._obj, items=items, offset=offset)

    def inpaint_clouds(
        self,
        mask: Mask | None = None,
        *,
        scl: xr.DataArray | None = None,
        method: str = "regression",
        dilate: int = DILATE,
        smooth: bool = False,
        return_uncertainty: bool = False,
        model: str | FamilyModel | None = None,
        progress: bool = False,
    ) -> Any:
        """Fill masked pixels from clear ones: `tec_zarr.inpaint_clouds`."""
        return inpaint_clouds(
            self._obj, mask, scl=scl, method=method, dilate=dilate, model=model,
            smooth=smooth, return_uncertainty=return_uncertainty, progress=progress,
        )  # fmt: skip

    def regularize(
        self,
        mask: Mask | None = None,
        *,
        freq: str = "5D",
        start: Any = None,
        end: Any = None,
        scl: xr.DataArray | None = None,
        method: str = "regression",
        dilate: int = DILATE,
        return_uncertainty: bool = False,
        model: str | FamilyModel | None = None,
    ) -> Any:
        """Series without gaps at equal steps of time: `tec_zarr.regularize`."""
        return regularize(
            self._obj, mask, freq=freq, start=start, end=end, scl=scl, method=method,
            dilate=dilate, return_uncertainty=return_uncertainty, model=model,
        )  # fmt: skip


class TecArray(_TecAccessor):
    """``DataArray.tec``."""


class TecDataset(_TecAccessor):
    """``Dataset.tec``."""


class TecTree(_TecAccessor):
    """``DataTree.tec`` of an EOPF product.

    Every method works on the cube that `tec_zarr.prepare` makes of the product: all bands on one
    grid, without the offset.
    """

    def __init__(self, obj: xr.DataTree) -> None:
        self._tree = obj
        self._made_of: dict[Any, Any] = {}
        self._cube: xr.Dataset | None = None

    @property
    def _obj(self) -> Any:
        """The cube. To make it takes some pixels of every date, so it is made once.

        It is made again after a variable of the tree was replaced.
        """
        from tec_zarr.stac.canonical import prepare

        variables = {
            (node.path, name): variable
            for node in self._tree.subtree for name, variable in node.variables.items()
        }  # fmt: skip
        same = variables.keys() == self._made_of.keys() and all(
            variable is self._made_of[key] for key, variable in variables.items()
        )
        if self._cube is None or not same:
            self._cube, self._made_of = prepare(self._tree), variables
        return self._cube

    def harmonize(
        self, *, items: Iterable[Any] | None = None, offset: int | Sequence[int] | None = None
    ) -> xr.Dataset:
        """The cube, lazily: `tec_zarr.prepare`."""
        from tec_zarr.stac.canonical import prepare

        return prepare(self._tree, items=items, offset=offset)
