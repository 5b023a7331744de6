"""lsq-qat, with weights pulled to their levels with one strength.

ReBNN's reconstruction error (Xu et al., AAAI 2023). For QATHook, and names
such as w1a1 or w1.6a4.
"""

base = 'lsq-qat'
qconfig = dict(weight=dict(type='LevelQuantizer', pull='fixed'))
