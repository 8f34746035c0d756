"""Intervals and rankings: bootstraps over clusters and hierarchies."""
