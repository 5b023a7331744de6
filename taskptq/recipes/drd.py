"""Distribution rectification distillation of Q-DETR: da and fqm at once."""

base = ['fqm', '_aligned']
