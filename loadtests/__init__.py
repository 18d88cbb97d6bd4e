"""Load over HTTP with honest latency numbers."""
