"""PTQ4SAM (Lv et al., CVPR 2024): BIG and AGQ (on QDrop).

Bimodal integration and adaptive granularity.
"""

base = ['qdrop', '_agq', '_big']
