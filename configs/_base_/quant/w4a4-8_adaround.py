_base_ = ['./w4a4_adaround.py']
qconfig = dict(attention=dict(num_bits=8), softmax=dict(num_bits=8))
