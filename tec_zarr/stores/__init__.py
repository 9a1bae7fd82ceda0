"""Zarr stores from outside, without xarray: objects, codec chain, chunks and shards."""
