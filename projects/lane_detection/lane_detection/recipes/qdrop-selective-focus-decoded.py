"""qdrop-selective-focus-fixed, with the foreground by decoded lanes.

Weights of locations fall off with the distance to a lane of the float model
that survives post-processing, whatever the confidence at the location.
"""

base = 'qdrop-selective-focus-fixed'
reconstruction = dict(loss=dict(focus='decoded'))
