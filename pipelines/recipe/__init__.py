"""The recipe: its sections, and how a file is read and its mistakes explained."""
