"""Limits of the page that tests open."""

MEGABYTES, MEGAPIXELS = 0.25, 2.0
