"""MLflow as a projection of the store: its runs, the view it opens on, and the models it serves."""
