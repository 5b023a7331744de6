_base_ = ['./qdrop-ours-s.py']
qconfig = dict(weight=dict(num_bits=8), activation=dict(num_bits=8))
