"""Ranges of least error, rounding to nearest."""

base = '_points'
reconstruction = None
