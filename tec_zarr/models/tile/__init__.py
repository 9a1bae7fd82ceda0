"""The image model ``tec-s2``: a tile is coded on the sensor's grids, with a basis per scale."""
