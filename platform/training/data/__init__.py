"""From triplet files to training batches."""
