"""Ours: the statistics of ours-s, QDrop's blocks, then Selective Focus.

Selective Focus works on the whole network. With half of qdrop's steps, both
phases together take about as long as qdrop's one.
"""

base = ['qdrop-selective-focus', '_ours-ground']
reconstruction = dict(
    steps=200, network_steps=150, network=dict(weight_lr=0.02)
)
