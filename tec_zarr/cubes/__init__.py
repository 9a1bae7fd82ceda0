"""Xarray objects to codec settings: dimensions, packing, layout, encoding, files."""
