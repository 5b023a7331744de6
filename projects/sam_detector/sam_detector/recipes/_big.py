"""Bimodal integration of PTQ4SAM."""

rewrites = [dict(type='BimodalIntegration')]
