"""Clouds filled with what lies under them: masks, tiles, pixelwise, regression, kriging."""
