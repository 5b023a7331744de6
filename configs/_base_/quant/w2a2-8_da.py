_base_ = ['./da.py']
qconfig = dict(
    weight=dict(num_bits=2),
    activation=dict(num_bits=2),
    attention=dict(num_bits=8),
    softmax=dict(num_bits=8),
)
