# Distribution rectification distillation (DRD of Q-DETR), trained: da-qat.py
# and fqm-qat.py at once.
_base_ = ['./da-qat.py']
distillation = dict(_delete_=True, weight=2.5, tau=0.6, mu1=2.0, mu2=5.0)
