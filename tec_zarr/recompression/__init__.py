"""Whole Zarr stores made again with TEC, chunk by chunk, resumable."""
