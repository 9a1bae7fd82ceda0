"""Prepare xarray objects for TEC: dimensions, bands, packing, chunks, encoding, files."""
