"""A file for each family of models, and the registry that knows them by name."""
