"""ONNX folders of a checkpoint: the graph of the family's one pass, at every level, with its certificate."""
