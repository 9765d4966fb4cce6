"""The HTTP routes, one module per kind of thing; each has a ``router``."""
