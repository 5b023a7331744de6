_base_ = ['./da.py']
qconfig = dict(
    weight=dict(num_bits=4),
    activation=dict(num_bits=4),
    attention=dict(num_bits=8),
    softmax=dict(num_bits=8),
)
