"""Perturbations, simulator, probes, retrieval and statistics. Knows no Ray or MLflow."""
