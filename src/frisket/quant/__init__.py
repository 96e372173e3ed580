"""Quantization: numbers on a grid of few levels, the layers that compute with them, and the search for their scales."""
