"""A tile as the embedded models code it: planes on the sensor's grids, bases by scale."""
