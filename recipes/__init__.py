"""Recipes to start from, also in an installed package: importlib.resources.files("reducible.recipes")."""
