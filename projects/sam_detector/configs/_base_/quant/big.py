# Bimodal integration of PTQ4SAM alone. Learned on top of QDrop.
_base_ = ['./qdrop.py']
rewrites = [dict(type='BimodalIntegration')]
