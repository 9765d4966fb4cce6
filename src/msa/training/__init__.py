"""Training: data, objectives, and the loop that turns a plain backbone into a model that remembers."""
