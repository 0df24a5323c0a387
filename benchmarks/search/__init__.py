"""Whole searches on this package and on what people use today, doing the same work."""
