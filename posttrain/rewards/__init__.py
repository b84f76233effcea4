"""Rewards: grading of answers against gold ones."""
