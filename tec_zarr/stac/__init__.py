"""Load STAC items, make canonical cubes from them, and write or append these to stores."""
