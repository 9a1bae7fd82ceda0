"""Which models there are, their weights and the formats of their sections; no torch."""
