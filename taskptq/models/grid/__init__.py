"""Heads that predict each box side as a distribution over a grid."""
