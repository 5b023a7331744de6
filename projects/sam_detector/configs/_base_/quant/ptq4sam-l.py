# PTQ4SAM (Lv et al., CVPR 2024): bimodal integration and adaptive
# granularity. Learned on top of QDrop.
_base_ = ['./qdrop.py']
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(type='AttentionOutputObserver'),
    )
)
rewrites = [dict(type='BimodalIntegration')]
