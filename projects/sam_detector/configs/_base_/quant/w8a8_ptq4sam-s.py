_base_ = ['./ptq4sam-s.py']
qconfig = dict(weight=dict(num_bits=8), activation=dict(num_bits=8))
