"""The online service: HTTP, the engine, the event log in Redis, and the states on the device."""
