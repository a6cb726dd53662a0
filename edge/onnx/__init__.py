"""ONNX models on ONNX Runtime: encoders and decoders out of a folder that was checked first."""
