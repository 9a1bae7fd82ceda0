"""From STAC items to cubes in canonical form, and appended to stores."""
