"""Softmax on the grid of least error of the attention's output.

Power of two or uniform.
"""

base = '_agq'
qconfig = dict(softmax=dict(observer=dict(taus=[0, 1, 2, 4])))
