"""Strings of digits with a verifier, small enough to enumerate (`posttrain control strings`).

Here GFlowNets meet language models: a string has one way to be written, so the backward policy of a GFlowNet is 1 and
trajectory balance is OREO's start residual. What each objective has learned is compared with its target exactly.
"""
