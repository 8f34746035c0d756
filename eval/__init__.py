"""Environments, perturbation, policies, metrics and intervals. Knows no Ray or MLflow."""
