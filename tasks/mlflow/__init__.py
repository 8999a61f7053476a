"""MLflow as a projection of the store: who writes its runs, the view it opens on, and the models it serves."""
