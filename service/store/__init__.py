"""What is kept in Redis: the event log, and the calls that reach it."""
