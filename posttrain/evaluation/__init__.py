"""Answers on file, what they say with which uncertainty, and the report made from them."""
