"""Online recommendation: the event log, the states that follow from it, the HTTP service."""
