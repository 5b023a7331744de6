"""QDrop's blocks, then Selective Focus on the whole network."""

base = ['qdrop-network-uniform', '_selection']
reconstruction = dict(loss=dict(focus='soft'))
