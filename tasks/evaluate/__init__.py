"""Evaluation of trained models: evaluate_task.py is the task; a file for each kind of data says what is measured."""
