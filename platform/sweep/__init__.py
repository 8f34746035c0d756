"""Search for the weights: Ray Tune over Ray Train, an Optuna study as the record."""
