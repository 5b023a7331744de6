"""As mse, on the layers that regress boxes alone; the others stay float."""

base = 'mse'
qconfig = dict(
    edge_bits=None,
    keep_float=[
        r're:(?!(.*\.)?((rpn|retina|atss|gfl|conv|fc)_reg'
        r'|reg_branches\.\d+\.4)$).*'
    ],
)
