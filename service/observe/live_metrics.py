"""What is counted of live evidence."""

from service.observe.registry import counter, latest, most

EVENTS = counter("tim4rec_live_events", "Records of the live feed that a process has counted")
LAG = most(
    "tim4rec_live_lag_seconds",
    "How old the newest counted entry of the live feed was when it was counted",
)
ITEMS = latest("tim4rec_live_items", "Items that live evidence knows")
RELOADS = counter("tim4rec_live_reloads", "Checkpoints of live evidence that were taken over")
GAPS = counter(
    "tim4rec_live_gaps",
    "Times that the live feed had lost events which neither a process nor a checkpoint had counted",
)
FAILURES = counter(
    "tim4rec_live_failures", "Times that the live feed or a checkpoint was not written, or not read"
)
