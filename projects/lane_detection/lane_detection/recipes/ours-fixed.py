"""ours, with 300 steps on the network and fixed scales."""

base = ['ours', '_fixed-scales']
