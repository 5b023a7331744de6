# lsq-qat.py with query distillation (FQM of Q-DETR): the co-attended features
# of queries near a ground truth are drawn to those of their partners in the
# float model, with the paper's settings.
_base_ = ['./lsq-qat.py']
distillation = dict(_delete_=True, weight=2.5, tau=0.6, mu1=2.0, mu2=5.0)
