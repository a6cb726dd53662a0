"""Data, no code: `catalog.toml` names the models that `edge pull` knows."""
