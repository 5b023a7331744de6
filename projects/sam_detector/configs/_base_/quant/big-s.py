# Bimodal integration of PTQ4SAM alone. Statistics only: ranges of least
# error, rounding to nearest.
_base_ = ['./mse.py']
rewrites = [dict(type='BimodalIntegration')]
