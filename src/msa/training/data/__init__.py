"""Samples, the files they are read from, and the sources and generators that make them."""
