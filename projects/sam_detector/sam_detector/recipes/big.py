"""Bimodal integration of PTQ4SAM alone (on QDrop)."""

base = ['qdrop', '_big']
