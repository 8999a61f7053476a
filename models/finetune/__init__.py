"""Low-rank adapters: LoRA on every kind of layer, and how an adapter is merged into its base."""
