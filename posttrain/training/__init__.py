"""Training: the trainers, crash-safe checkpoints, run records and metrics."""
