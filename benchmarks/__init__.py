"""Measurements: `python -m benchmarks --help`. Nothing in the packages or their tests imports from here."""
