"""The tasks that turn a recipe's data section into a dataset, a file for each kind of data."""
