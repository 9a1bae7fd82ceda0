"""The compiled core, and the functions that call it."""
