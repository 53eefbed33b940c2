"""Trains the toy's weights: the VAE, the transformer and the human parser."""
