"""The STAC item of a store: where and when it is, and how Zarr opens it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import toy
import xarray as xr
from test_overviews import ds, small  # noqa: F401  fixtures

from tec_zarr.errors import UnsupportedArrayError
from tec_zarr.face.cli import main
from tec_zarr.recompression.run import recompress
from tec_zarr.stac.item import stac_item

pystac = pytest.importorskip("pystac", reason="pip install 'tec_zarr[stac]'")
pytest.importorskip("pyproj", reason="pip install 'tec_zarr[stac]'")
TOY = ["--model", toy.NAME]


def read(path):
    item = json.loads(path.read_text())
    assert pystac.Item.from_dict(item).to_dict(transform_hrefs=False)["assets"] == item["assets"]
    return item


@pytest.mark.parametrize("overviews", [[], ["--overviews"]])
@pytest.mark.parametrize("command", ["encode", "recompress"])
def test_commands_write_it(ds, tmp_path, command, overviews):  # noqa: F811
    ds.to_zarr(tmp_path / "in.zarr")
    made = tmp_path / "catalog" / "item.json"
    made.parent.mkdir()
    target = tmp_path / "a.zarr"
    arguments = [command, str(tmp_path / "in.zarr"), str(target), "--stac-item", str(made)]
    assert main([*arguments, *TOY, *overviews]) == 0
    item = read(made)
    asset, properties = item["assets"]["zarr"], item["properties"]
    assert (item["id"], asset["href"]) == ("a", "../a.zarr")
    assert (asset["zarr:node_type"], asset["zarr:zarr_format"]) == ("group", 3)
    root = xr.open_zarr(target, group="0" if overviews else None, consolidated=False)
    assert [b["name"] for b in asset["bands"]] == root.band.values.tolist() == ["B02", "B04", "B08"]
    assert (properties["proj:code"], properties["proj:shape"]) == ("EPSG:32632", [70, 90])
    assert properties["proj:transform"][0] == 10
    west, north = float(ds.x[0]) - 5, float(ds.y[0]) + 5
    assert properties["proj:bbox"] == [west, north - 700, west + 900, north]
    first, last = np.datetime_as_string(ds.time.values.astype("M8[s]"))
    assert (properties["start_datetime"], properties["end_datetime"]) == (f"{first}Z", f"{last}Z")
    assert properties["datetime"] is None
    w, s, e, n = item["bbox"]
    assert 8 < w < e < 11
    assert 47 < s < n < 49
    assert all(w <= x <= e and s <= y <= n for x, y in item["geometry"]["coordinates"][0])


def test_from_stac_writes_it(tmp_path):
    made = pytest.importorskip("test_stac")
    catalog = made.make_catalog(tmp_path / "catalog", bands=("B02", "B04"), size=32)
    box = made.search(catalog, bbox=made.WORLD, datetime="..")[0].bbox
    arguments = [
        "from-stac",
        str(tmp_path / "a.zarr"),
        "--bbox",
        *map(str, box),
        "--datetime",
        "..",
    ]
    item = tmp_path / "a.json"
    assert main([*arguments, "--catalog", str(catalog), "--stac-item", str(item), *TOY]) == 0
    west, south, east, north = read(item)["bbox"]
    assert west < box[2]
    assert box[0] < east
    assert south < box[3]
    assert box[1] < north


@pytest.mark.parametrize("lack", ["CRS", "dates"])
def test_what_a_store_does_not_say_is_not_made_up(ds, tmp_path, lack):  # noqa: F811
    ds.reflectance.encoding.clear()
    bare = ds.drop_vars("spatial_ref") if lack == "CRS" else ds.drop_vars("time")
    bare.attrs.clear()
    bare.to_zarr(tmp_path / "in.zarr")
    assert recompress(tmp_path / "in.zarr", tmp_path / "a.zarr", model=toy.NAME).complete
    with pytest.raises(UnsupportedArrayError, match=f"says no {lack}"):
        stac_item(tmp_path / "a.zarr", "a.zarr")
    with pytest.raises(UnsupportedArrayError, match="no group with TEC"):
        stac_item(tmp_path / "in.zarr", "in.zarr")
