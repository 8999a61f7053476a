"""Bytes to batches: sources, tokenizer, token shards and the deterministic order of examples."""
