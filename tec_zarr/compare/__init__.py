"""Two cubes side by side: aligned, measured, shown."""
