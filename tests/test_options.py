"""An option of a chunk is declared once, and every way to encode takes it."""

import inspect

import numpy as np
import pytest
import xarray as xr

import tec_zarr
from tec_zarr.codec.options import options_of
from tec_zarr.codec.spec import ChunkSpec
from tec_zarr.cubes.simulate import simulate
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.face.accessor import TecArray
from tec_zarr.face.cli import main
from tec_zarr.face.write import to_zarr
from tec_zarr.sentinel2 import L2A_BANDS

OPTIONS = list(options_of(ChunkSpec))


def cube(values):
    return xr.DataArray(values, dims=("time", "band", "y", "x"), name="reflectance",
                        coords={"band": list(L2A_BANDS)})  # fmt: skip


@pytest.fixture
def floats():
    rng = np.random.default_rng(0)
    return cube((rng.integers(1200, 4000, (1, 12, 64, 64)) * 1e-4).astype("float32"))


@pytest.mark.parametrize("name", OPTIONS)
def test_functions_show_every_option(name):
    default = options_of(ChunkSpec)[name][0].default
    functions = [tec_zarr.encoding, tec_zarr.recompress, simulate, to_zarr, TecArray.encoding,
                 TecArray.simulate, tec_zarr.TEC, tec_zarr.TECCodec]  # fmt: skip
    if name not in ("bands", "offset"):  # of the catalogue, and of its items
        functions.append(tec_zarr.from_stac)
    for function in functions:
        assert inspect.signature(function).parameters[name].default == default
    assert f"\n{name} : " in tec_zarr.encoding.__doc__
    assert f"\n{name} : " in tec_zarr.recompress.__doc__


@pytest.mark.parametrize("command", ["encode", "recompress", "report", "demo", "from-stac"])
def test_commands_take_every_option(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = capsys.readouterr().out
    assert not [name for name in OPTIONS if f"--{name.replace('_', '-')} " not in said]


def test_an_option_of_no_kind_is_refused(floats):
    with pytest.raises(TypeError, match="qualty"):
        tec_zarr.encoding(floats, qualty=5)


@pytest.mark.parametrize("packing", [{}, {"scale_factor": 2e-4, "add_offset": -0.05}])
def test_floats_that_carry_an_offset(floats, packing, tmp_path):
    factor, added = packing.get("scale_factor", 1e-4), packing.get("add_offset", 0)
    if packing:
        floats = floats.copy(data=(np.rint(floats / factor) * factor + added).astype("f4"))
        floats.encoding = {"dtype": "uint16", "_FillValue": 0, **packing}
    stored = tec_zarr.encoding(floats, offset=1000)["reflectance"]
    codec = stored["serializer"]
    # The number that is stored for 0.2 means 2,000 DN, of which the offset is 1,000.
    number = (0.2 - added) / factor
    assert stored["scale_factor"] == factor
    assert number / (codec.scale or 1) - codec.offset == pytest.approx(1000)
    floats.tec.to_zarr(tmp_path / "a.zarr", offset=1000, max_error=0.001)
    back = xr.open_zarr(tmp_path / "a.zarr").reflectance
    assert float(abs(back - floats).max()) < 0.00101


def test_dates_with_another_offset_are_not_added(floats, tmp_path):
    later = floats.assign_coords(time=[np.datetime64("2024-01-02", "ns")])
    first = floats.assign_coords(time=[np.datetime64("2024-01-01", "ns")])
    first.tec.to_zarr(tmp_path / "a.zarr", offset=1000)
    later.tec.to_zarr(tmp_path / "a.zarr", append_dim="time", offset=1000)
    with pytest.raises(UnsupportedArrayError, match="another offset"):
        later.tec.to_zarr(tmp_path / "a.zarr", append_dim="time", offset=0)
