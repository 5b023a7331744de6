"""PTQ4SAM (Lv et al., CVPR 2024): BIG and AGQ (statistics only).

Bimodal integration and adaptive granularity. Ranges of least error, rounding
to nearest.
"""

base = ['mse', '_agq', '_big']
