"""As drd, with 300 steps on decoder and head, and fixed scales."""

base = ['drd', '_fixed-scales']
