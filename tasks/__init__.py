"""Workflow tasks: a typed spec and input artifacts in, a durable artifact out."""
