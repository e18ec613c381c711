"""States: waves of requests stepped, rebuilt and read in a pool."""
