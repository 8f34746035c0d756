"""The user's own models in preprocessing: depth and captions, on actors."""
