"""Integral reinforcement learning (arXiv 2402.17375): plants, quadrature, and policy iteration by least squares."""
