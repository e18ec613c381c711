"""What benchmarks.attacks sends, and what it watches meanwhile."""
