_base_ = ['./w2a2_mse.py']
qconfig = dict(attention=dict(num_bits=8), softmax=dict(num_bits=8))
