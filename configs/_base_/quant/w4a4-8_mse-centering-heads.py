# A grid for each head's queries, keys and values.
_base_ = ['./w4a4-8_mse-centering.py']
qconfig = dict(attention=dict(per_head=True))
