"""Sensitivity Aware Selection alone.

Heads by how much their error distorts the lanes; all places of a head weigh
the same.
"""

base = ['network-uniform', '_selection']
