"""Foreground-aware query matching of Q-DETR (Xu et al., CVPR 2023), for LSTR.

Queries are compared as strips around their lanes instead of boxes. Foreground
is what the float model is confident of: no labels are read.
"""

base = 'gptq-decoder'
reconstruction = dict(
    loss=dict(
        _delete_=True,
        type='QueryDistillationLoss',
        metric='strip',
        teacher_score_thr=0.5,
        tau=0.6,
        mu1=2.0,
        mu2=5.0,
        layers='all',
        agreement='own',
    )
)
