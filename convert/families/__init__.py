"""One module a model family: its configuration, its tensors' names and layouts, its forward pass."""
