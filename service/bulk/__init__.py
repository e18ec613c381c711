"""Many users at once: histories imported, states warmed up."""
