"""qdrop-selective-focus with 300 steps on the network and fixed scales."""

base = ['qdrop-selective-focus', '_fixed-scales']
