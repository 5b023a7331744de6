"""What every rewrite needs: views, statistics, a check of the output."""

from taskptq.methods.rewriting.verified_rewrite import (
    RewriteEntry,
    RewriteReport,
)

__all__ = ['RewriteEntry', 'RewriteReport']
