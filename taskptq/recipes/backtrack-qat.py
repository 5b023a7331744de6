"""lsq-qat, with channels moved on that converge out of step.

RBONN (Xu et al., ECCV 2022). For QATHook, and names such as
w1a1 or w1.6a4.
"""

base = 'lsq-qat'
qconfig = dict(weight=dict(type='LevelQuantizer', pull='backtrack'))
