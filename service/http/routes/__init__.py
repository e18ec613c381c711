"""The HTTP routes, grouped by noun."""
