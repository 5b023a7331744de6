"""Sensitivity Aware Selection alone.

Heads are weighted by how much their error distorts the lanes; all positions of
a head have the same weight.
"""

base = ['network-uniform', '_selection']
