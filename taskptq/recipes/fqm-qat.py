"""As lsq-qat, with the query distillation of Q-DETR (Xu et al., CVPR 2023).

The co-attended features of queries near a ground truth are drawn to those of
their partners in the float model.
"""

base = ['lsq-qat', '_query-distillation']
