"""Items, and which of them an answer holds."""
