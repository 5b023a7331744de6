"""The demo's data set, picture and report."""
