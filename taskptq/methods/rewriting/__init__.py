"""Shared parts of all rewrites: views, statistics, output checks."""

from taskptq.methods.rewriting.verified_rewrite import (
    RewriteEntry,
    RewriteReport,
)

__all__ = ['RewriteEntry', 'RewriteReport']
