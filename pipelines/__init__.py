"""Compositions of tasks, the recipe schema, the command line and submission to a cluster."""
