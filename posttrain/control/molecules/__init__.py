"""Molecules assembled from blocks: environment, symmetries, the sEH proxy, rewards, measures of a set."""
