"""PTQ4SAM (Lv et al., CVPR 2024): bimodal integration and AGQ.

Statistics only: ranges of least error, rounding to nearest.
"""

base = ['mse', '_agq', '_big']
