"""The same with stackstac, step by step, for those who load and look before they write.

    python stac_stackstac.py [path/catalog.json or URL]
"""

import sys

import tec_zarr
from tec_zarr.stac.append import write
from tec_zarr.stac.load import EARTH_SEARCH, load, search

catalog = sys.argv[1] if len(sys.argv) > 1 else EARTH_SEARCH
area = (10.338, 47.841, 10.344, 47.845)

items = search(catalog, bbox=area, datetime="2023-06")
print("found", *(item.id for item in items))

# What stackstac.stack gives; your own call of it works as well.
stack = load(items, bbox=area, bands=["blue", "green", "red", "nir"], loader="stackstac")
print("stackstac:", dict(stack.sizes), stack.dtype, "time chunks", stack.chunks[0])

# DN without the offset, canonical names, SCL beside it, chunks that TEC can write.
cube = tec_zarr.prepare(stack, items=items)
print(cube.attrs["history"])

# What would be lost, and how large would it be? Nothing is written yet.
for quality in (2, 5, 8):
    table = cube.tec.simulate(quality=quality).tec.report(cube)
    size = cube.tec.weigh(quality=quality)
    ratio = cube.reflectance.nbytes / size
    print(f"quality {quality}: {table.loc['all', 'psnr']:.1f} dB, {ratio:.0f} : 1")

write(cube, "kaufbeuren-stackstac.zarr", quality=5)
