"""The training task: the step, its schedule, its parallelism and its checkpoints."""
