# Keys and values centered, in place of bimodal integration. Learned on top of
# QDrop.
_base_ = ['./qdrop.py']
rewrites = [dict(type='AttentionCentering', patterns=['sam.*'])]
