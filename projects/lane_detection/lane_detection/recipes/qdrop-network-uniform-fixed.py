"""qdrop-network-uniform with 300 steps on the network and fixed scales."""

base = ['qdrop-network-uniform', '_fixed-scales']
