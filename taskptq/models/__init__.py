"""Heads that subclass the hosts' classes; registered, imported lazily."""
