"""Layer 4: one file for each idea from a paper."""
