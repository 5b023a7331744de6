_base_ = ['./qdrop-centering.py']
qconfig = dict(
    weight=dict(num_bits=3),
    activation=dict(num_bits=3),
    attention=dict(num_bits=8),
    softmax=dict(num_bits=8),
)
