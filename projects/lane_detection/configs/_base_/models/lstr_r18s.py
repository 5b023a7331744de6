# LSTR, 0.77 M parameters. Mean and standard deviation are those of the
# published weights, which see channels in the order B, G, R.
model = dict(
    type='LaneDetector',
    data_preprocessor=dict(
        type='LaneDataPreprocessor',
        mean=[104.01362025, 114.03422265, 119.9165958],
        std=[73.6027765, 69.89082075, 70.9150767],
    ),
    backbone=dict(
        type='LSTRResNet',
        depth=16,
        base_channels=16,
        out_indices=(3,),
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
    ),
    head=dict(type='LSTRHead', in_channels=128, num_queries=7),
    train_cfg=dict(num_rows=56),
    test_cfg=dict(score_thr=0.5, num_points=72),
)
