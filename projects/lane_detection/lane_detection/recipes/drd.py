"""Distribution rectification distillation of Q-DETR for LSTR: da and fqm."""

base = ['fqm', '_aligned']
