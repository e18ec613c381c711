"""States in a pool: batches of requests step them, rebuild them and read them."""
