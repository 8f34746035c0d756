"""What a triplet folder holds: summary, inspection, data card and overlays."""
