"""The embedded models' tile: planes on the sensor's grids, spectral bases by scale, coefficients."""
