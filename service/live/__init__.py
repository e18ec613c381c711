"""Evidence of what has happened since training, counted alike by every process."""
