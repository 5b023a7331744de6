"""As mse-centering, with a grid for each head's queries, keys and values."""

base = 'mse-centering'
qconfig = dict(attention=dict(per_head=True))
