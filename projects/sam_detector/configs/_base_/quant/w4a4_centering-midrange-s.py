_base_ = ['./centering-midrange-s.py']
qconfig = dict(weight=dict(num_bits=4), activation=dict(num_bits=4))
