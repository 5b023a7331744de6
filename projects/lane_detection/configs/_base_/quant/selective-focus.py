# Selective Focus: Semantic Guided Focus and Sensitivity Aware Selection.
_base_ = ['./sas.py']
reconstruction = dict(loss=dict(focus='soft'))
