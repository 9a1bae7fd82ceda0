"""``max_error``: resolves the requested bounds, and codes residuals so that they are kept."""
