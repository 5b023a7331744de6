# A grid for each head's queries, keys and values.
_base_ = ['./w3a3-8_mse-centering.py']
qconfig = dict(attention=dict(per_head=True))
