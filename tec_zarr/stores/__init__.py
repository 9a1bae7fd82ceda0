"""Read and write Zarr stores without xarray: objects, codec chains, chunks and shards."""
