# Keys and values centered; softmax on a power-of-two grid. Learned on top of
# QDrop.
_base_ = ['./qdrop.py']
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(type='AttentionOutputObserver')))
rewrites = [dict(type='AttentionCentering', patterns=['sam.*'])]
