"""Encodes one chunk to one frame and decodes it, and adapts both to Zarr v3 and numcodecs."""
