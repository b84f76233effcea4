"""Sampling: two engines behind one protocol, and the collection of graded trajectories."""
