"""Scores of an encoder: retrieval and probes, and how they are shown."""
