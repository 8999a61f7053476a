"""The plan: what would run and why, what it costs, and the memory of a step."""
