"""Integral reinforcement learning with nine ways to take the integral (arXiv 2402.17375): `posttrain control intrl`."""
