"""Checkpoint files that are not what they seem, and what tools do with them.

Whatever a file here would run creates an empty marker file in the folder of
the run, and nothing else.
"""
