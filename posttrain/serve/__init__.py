"""The inference server: the OpenAI routes, and searches by value."""
