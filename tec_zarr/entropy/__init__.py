"""One range coder and its tables."""
