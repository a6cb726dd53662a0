"""The on-device runtime that proves its choices."""
