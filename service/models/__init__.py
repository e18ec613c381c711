"""Which models are served, to whom, and how one follows another."""
