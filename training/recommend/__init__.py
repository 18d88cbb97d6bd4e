"""Recommendation: sequence encoder, retrieval over the whole catalogue and multi-objective ranker."""
