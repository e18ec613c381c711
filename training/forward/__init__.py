"""A log walked forward in time: what policies would have recommended before each event."""
