"""Keys and values centered (statistics only).

In place of bimodal integration. Ranges of least error, rounding to nearest.
"""

base = ['mse', '_centering']
