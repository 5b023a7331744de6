# PTQ4SAM (Lv et al., CVPR 2024): bimodal integration and adaptive
# granularity. Statistics only: ranges of least error, rounding to nearest.
_base_ = ['./mse.py']
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(type='AttentionOutputObserver'),
    )
)
rewrites = [dict(type='BimodalIntegration')]
