"""Malicious and damaged checkpoint files, and how tools handle them.

Code in these files only creates an empty marker file in the folder of the run.
"""
