# A grid for each head's queries, keys and values.
_base_ = ['./w8a8_mse-centering.py']
qconfig = dict(attention=dict(per_head=True))
