"""Keys and values centered, in place of bimodal integration.

Statistics only: ranges of least error, rounding to nearest.
"""

base = ['mse', '_centering']
