"""Ours: the ground of ours-s, QDrop's blocks, then Selective Focus.

Selective Focus works on the whole network. Half of qdrop's steps, so that
both phases take about as long as its one.
"""

base = ['qdrop-selective-focus', '_ours-ground']
reconstruction = dict(
    steps=200, network_steps=150, network=dict(weight_lr=0.02)
)
