"""The learner: trains on what has been logged, judges, publishes, watches, takes back."""
