"""Primitives that need care to be fast, one file each."""
