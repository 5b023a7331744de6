"""What a deployed model meets: other decoders, resizers, weather, attacks.

Image noises act inside a data pipeline, model noises switch parts of a model
for a while. Both have names such as ``resize=opencv-nearest``, ``fog=3`` or
``ceil_mode``; see :mod:`taskptq.robustness.names`.
"""

from taskptq.robustness import transforms  # noqa: F401 - registers them
from taskptq.robustness.names import Noise, parse_noise

__all__ = ['Noise', 'parse_noise']
