"""Kinds of data as a recipe writes them: a file for each, with its section and the tasks that make its dataset."""
