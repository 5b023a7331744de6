_base_ = ['./qdrop-centering.py']
qconfig = dict(weight=dict(num_bits=8), activation=dict(num_bits=8))
