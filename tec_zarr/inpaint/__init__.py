"""Cloud filling: masks, and estimates of the ground under them from clear pixels and dates."""
