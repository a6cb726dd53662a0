"""Checkpoints into artifacts, on the device, without torch."""
