"""Search guided by a value model: one tree type, several ways to grow it."""
