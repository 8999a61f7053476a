"""Writing with a trained model: samples, beam search, translations."""
