"""One chunk to bytes and back, and the two adapters."""
