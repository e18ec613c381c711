"""The command `tim4rec`; `cli.main` imports each of its commands only when that one is used."""
