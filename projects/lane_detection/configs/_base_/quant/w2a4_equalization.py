_base_ = ['./equalization.py']
qconfig = dict(
    weight=dict(num_bits=2, symmetric=False), activation=dict(num_bits=4)
)
