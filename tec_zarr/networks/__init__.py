"""The embedded models as torch runs them, until the native core does (torch)."""
