"""A float teacher's part in the loss of a quantization-aware training."""

from taskptq.qat.distillation.attached import Distillation
from taskptq.qat.distillation.config import DistillationConfig
from taskptq.qat.distillation.decoder import ground_truth
from taskptq.qat.distillation.view import DistillationView
from taskptq.qat.distillation.view_config import ViewConfig

__all__ = [
    'Distillation',
    'DistillationConfig',
    'DistillationView',
    'ViewConfig',
    'ground_truth',
]
