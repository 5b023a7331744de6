_base_ = ['./qdrop-ours-s.py']
qconfig = dict(
    weight=dict(num_bits=3, symmetric=False), activation=dict(num_bits=3)
)
