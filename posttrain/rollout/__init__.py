"""Sampling from a policy: engines behind one protocol, and the collection of graded trajectories."""
