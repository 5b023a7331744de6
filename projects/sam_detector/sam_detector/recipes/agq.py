"""Adaptive granularity of PTQ4SAM alone.

Learned on top of QDrop.
"""

base = ['qdrop', '_agq']
