"""Files of a wished size: steps of weights by rate and distortion.

L2: Shi et al., 'Lossy and lossless post-training model size compression',
ICCV 2023.
"""

from taskptq.methods.l2_compression.allocation import Allocation, allocate
from taskptq.methods.l2_compression.curves import RateCurve, rate_curve

__all__ = ['Allocation', 'RateCurve', 'allocate', 'rate_curve']
