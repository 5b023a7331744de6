_base_ = ['./equalization.py']
qconfig = dict(weight=dict(num_bits=6), activation=dict(num_bits=6))
