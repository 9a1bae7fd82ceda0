"""The registry of models, their weights, and the formats of their sections; without torch."""
