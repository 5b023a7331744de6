_base_ = ['./ours.py']
qconfig = dict(weight=dict(num_bits=2), activation=dict(num_bits=4))
