"""The two towers: models and training, without a database."""
