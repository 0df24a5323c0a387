"""Verifiers: what scores the steps of a search."""
