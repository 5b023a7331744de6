"""Segment Anything prompted by an mmdet detector.

Importing the package registers its classes with mmdet's registries, and its
recipes with taskptq (``recipe='w4a4_ptq4sam-l'``), so
``custom_imports = dict(imports=['sam_detector'])`` is all a config needs.
"""

from taskptq.hosts import register_float
from taskptq.recipes import register_folder

from .detector import SAMDetector
from .metrics import InstanceCocoMetric, PromptedMaskMetric
from .network_parts import SAMParts
from .preprocessor import SAMDataPreprocessor
from .prompts import Prompts
from .sam import SAM_SIZES, PromptedSAM, SAMSize
from .training import prompt_losses
from .transforms import PackSAMInputs, SAMViews, ZoomCrop
from .views import View

__all__ = [
    'SAM_SIZES',
    'InstanceCocoMetric',
    'PackSAMInputs',
    'PromptedMaskMetric',
    'PromptedSAM',
    'Prompts',
    'SAMDataPreprocessor',
    'SAMDetector',
    'SAMParts',
    'SAMSize',
    'SAMViews',
    'View',
    'ZoomCrop',
    'prompt_losses',
]

register_folder('sam_detector.recipes')
# It multiplies masks by the matrices of a resize: geometry, not features.
register_float(SAMDetector, 'pastes masks into images, which stay float')
