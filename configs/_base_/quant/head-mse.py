# mse.py on the layers that regress boxes alone; everything else stays float.
_base_ = ['./mse.py']
qconfig = dict(
    edge_bits=None,
    keep_float=[
        r're:(?!(.*\.)?((rpn|retina|atss|gfl|conv|fc)_reg'
        r'|reg_branches\.\d+\.4)$).*'
    ],
)
