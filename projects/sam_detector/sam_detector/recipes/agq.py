"""Adaptive granularity of PTQ4SAM alone (on QDrop)."""

base = ['qdrop', '_agq']
