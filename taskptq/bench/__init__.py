"""Measure tables of results and render them."""
