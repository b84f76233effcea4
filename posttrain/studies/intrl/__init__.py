"""Integral reinforcement learning by several rules of quadrature (arXiv 2402.17375): `posttrain control intrl`."""
