"""posttrain: post-train language models with token-level Q/value objectives."""

__version__ = "0.1.0"
