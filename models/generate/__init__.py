"""What a trained model writes: samples, beam search, translations."""
