"""Distribution rectification distillation of Q-DETR, in training.

da-qat and fqm-qat at once.
"""

base = ['da-qat', '_query-distillation']
