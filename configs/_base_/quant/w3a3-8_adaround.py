_base_ = ['./w3a3_adaround.py']
qconfig = dict(attention=dict(num_bits=8), softmax=dict(num_bits=8))
