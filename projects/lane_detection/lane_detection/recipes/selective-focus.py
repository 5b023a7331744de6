"""Selective Focus: Semantic Guided Focus and Sensitivity Aware Selection."""

base = 'sas'
reconstruction = dict(loss=dict(focus='soft'))
