# As fqm.py, with the squared error of all outputs of the head alike in place
# of query distillation: what FQM and DRD are compared with at equal steps.
_base_ = ['./fqm.py']
reconstruction = dict(loss=dict(_delete_=True, type='NetworkUniform'))
