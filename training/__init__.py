"""Offline jobs: data in, gated model artifacts out."""
