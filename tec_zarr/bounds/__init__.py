"""Max_error: what was asked for, and the layer that keeps it."""
