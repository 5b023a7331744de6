# As centering-agq, with a granularity for each head. Learned on top of QDrop.
_base_ = ['./qdrop.py']
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(type='AttentionOutputObserver', per_head=True)))
rewrites = [dict(type='AttentionCentering', patterns=['sam.*'])]
