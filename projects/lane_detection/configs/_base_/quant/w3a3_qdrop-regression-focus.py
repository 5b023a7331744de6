_base_ = ['./qdrop-regression-focus.py']
qconfig = dict(weight=dict(num_bits=3), activation=dict(num_bits=3))
