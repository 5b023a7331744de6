"""A softmax grid for each head."""

qconfig = dict(softmax=dict(observer=dict(per_head=True)))
