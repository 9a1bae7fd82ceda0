"""`tec-zarr virtual`: readers of Zarr format 2 see the chunks of a store of format 3."""

import warnings

import numpy as np
import pytest
import xarray as xr
import zarr

import tec_zarr
from tec_zarr.cubes import synthetic
from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.face.cli import main
from tec_zarr.stores.virtual import virtual

SHAPE = (2, 4, 40, 48)


def written(path, array=None, **options):
    dn = synthetic.cube(dates=2, size=48).values[:, :4, :40] if array is None else array
    settings = {"dtype": dn.dtype, "chunks": (1, 4, 32, 32), "serializer": tec_zarr.TECCodec(),
                "compressors": None, "fill_value": 0} | options  # fmt: skip
    made = zarr.create_array(path, name="dn", shape=dn.shape, **settings)
    made[:] = dn
    return made


def contents(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def cube(tmp_path):
    ds = synthetic.dataset(dates=2, size=80)
    encoding = tec_zarr.encoding(ds, chunks={"time": 1, "y": 64, "x": 48})
    for name in ds.variables:
        encoding.setdefault(name, {}).pop("shards", None)
    ds.to_zarr(tmp_path / "cube.zarr", encoding=encoding)
    return tmp_path / "cube.zarr"


def test_format_2_shows_the_pixels_coordinates_and_names_of_format_3(cube, capsys):
    before = xr.open_zarr(cube, mask_and_scale=False).load()
    assert main(["virtual", str(cube)]) == 0
    assert capsys.readouterr().out == f'ZARR:"{cube}/reflectance":/c\n'
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Object at zarr.json is not recognized")
        seen = xr.open_zarr(
            cube / "reflectance", zarr_format=2, consolidated=False, mask_and_scale=False
        )
    xr.testing.assert_equal(seen.c, before.reflectance)
    assert seen.c.dims == ("time", "band", "y", "x")
    assert seen.c.attrs["_CRS"]["wkt"] == before.spatial_ref.attrs["crs_wkt"]


def test_format_3_sees_nothing_of_it(cube):
    before, files = xr.open_zarr(cube).load(), contents(cube)
    for _ in range(2):  # a second time changes nothing
        virtual(cube)
        after = contents(cube)
        assert {file: after[file] for file in files} == files
        xr.testing.assert_identical(xr.open_zarr(cube).load(), before)
        group = zarr.open_group(cube, mode="r", use_consolidated=False)
        assert {name for name, _ in group.members(max_depth=None)} == set(before.variables)


def test_chunks_that_are_not_stored_have_the_fill_value(tmp_path):
    made = written(tmp_path / "a.zarr", fill_value=7)
    missing = tmp_path / "a.zarr/dn/c/1/0/0/0"
    missing.unlink()
    virtual(tmp_path / "a.zarr")
    seen = zarr.open_array(tmp_path / "a.zarr/dn/c", mode="r")
    assert seen.metadata.zarr_format == 2
    assert (seen[1, :, :32, :32] == 7).all()
    np.testing.assert_array_equal(seen[:], made[:])


@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_dtypes_and_memory_orders(tmp_path, dtype, order):
    dn = synthetic.cube(dates=2, size=32).values[:, :4]
    values = (dn.astype(dtype) * (1e-4 if dtype.startswith("float") else 1)).astype(dtype)
    made = written(tmp_path / "a.zarr", np.asarray(values, order=order), chunks=(2, 4, 32, 32))
    virtual(tmp_path / "a.zarr")
    seen = zarr.open_array(tmp_path / "a.zarr/dn/c", mode="r")
    np.testing.assert_array_equal(seen[:], made[:])
    assert seen.dtype == made.dtype
    assert seen.order == order


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": (2, 4, 64, 64)}, "has shards"),
        ({"compressors": zarr.codecs.GzipCodec()}, "other codecs"),
        ({"chunk_key_encoding": {"name": "default", "separator": "."}}, "do not lie in folders"),
        ({"serializer": "auto"}, "no TEC array"),
    ],
)
def test_what_format_2_cannot_show_is_refused_and_nothing_is_written(tmp_path, options, message):
    written(tmp_path / "a.zarr", **options)
    files = contents(tmp_path)
    with pytest.raises(UnsupportedArrayError, match=message):
        virtual(tmp_path / "a.zarr")
    assert contents(tmp_path) == files


def test_chunks_of_several_memory_orders_are_refused(tmp_path):
    dn = synthetic.cube(dates=2, size=32).values[:, :4]
    made = written(tmp_path / "a.zarr", dn, chunks=(1, 4, 32, 32))
    made[:1] = np.asarray(dn[:1], order="F")
    with pytest.raises(UnsupportedArrayError, match="several memory or byte orders"):
        virtual(tmp_path / "a.zarr")


def test_a_store_of_format_2_has_nothing_to_do(tmp_path, capsys):
    dn = synthetic.cube(dates=1, size=32).values
    made = zarr.create_array(tmp_path / "a.zarr", name="dn", shape=dn.shape, dtype=dn.dtype,
                             zarr_format=2, compressors=tec_zarr.TEC())  # fmt: skip
    made[:] = dn
    assert main(["virtual", str(tmp_path / "a.zarr")]) == 1
    assert "has no TEC array of Zarr format 3" in capsys.readouterr().err


def test_an_array_without_a_group_around_it(tmp_path, capsys):
    dn = synthetic.cube(dates=1, size=32).values
    made = zarr.create_array(tmp_path / "a.zarr", shape=dn.shape, dtype=dn.dtype,
                             serializer=tec_zarr.TECCodec(), compressors=None)  # fmt: skip
    made[:] = dn
    assert main(["virtual", str(tmp_path / "a.zarr")]) == 0
    assert capsys.readouterr().out == f'ZARR:"{tmp_path}/a.zarr":/c\n'
    seen = zarr.open_array(tmp_path / "a.zarr/c", mode="r", zarr_format=2)
    np.testing.assert_array_equal(seen[:], made[:])


def test_what_is_no_store_is_an_error(tmp_path, capsys):
    assert main(["virtual", str(tmp_path / "none.zarr")]) == 1
    assert "none.zarr cannot be opened" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
