"""Comparison of two cubes: align them, measure the errors, show them."""
