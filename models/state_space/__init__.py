"""The parts of a deep state-space model: how latents move, what they say, what an encoder believes of them."""
