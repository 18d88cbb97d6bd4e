"""Evaluation that never stops: what each version's pages led to, and whether live traffic is what it learned from."""
