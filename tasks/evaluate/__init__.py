"""Evaluation of trained models: task.py is the task, and one file says what it measures for each kind of data."""
