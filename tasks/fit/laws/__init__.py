"""Forms of a law: one file each, and a registry with a line for each."""
