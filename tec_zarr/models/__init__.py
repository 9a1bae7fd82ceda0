"""The learned models; torch is imported here and in ``tec_zarr.training``, nowhere else."""
