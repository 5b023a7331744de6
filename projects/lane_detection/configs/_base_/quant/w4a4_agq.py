_base_ = ['./agq.py']
qconfig = dict(weight=dict(num_bits=4), activation=dict(num_bits=4))
