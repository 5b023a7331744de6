"""Output error: one number for how much a model's predictions change."""

from taskptq.methods.output_error.loss import OutputErrorLoss
from taskptq.methods.output_error.output_loss import OutputLoss

__all__ = ['OutputErrorLoss', 'OutputLoss']
