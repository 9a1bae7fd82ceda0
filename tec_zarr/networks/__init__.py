"""The embedded models, run by torch."""
