_base_ = ['./minmax.py']
qconfig = dict(
    weight=dict(num_bits=6),
    activation=dict(num_bits=6),
    attention=dict(num_bits=8),
    softmax=dict(num_bits=8),
)
