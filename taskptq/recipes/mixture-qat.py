"""lsq-qat, with weights pulled to the means of a mixture of two.

POEM (Xu et al., BMVC 2021). For QATHook, and names such as
w1a1 or w1.6a4.
"""

base = 'lsq-qat'
qconfig = dict(weight=dict(type='LevelQuantizer', pull='mixture'))
