"""Training of the embedded models and of the published family (torch)."""
