"""Formats of recordings: list clips, then read frames, depth, cameras and captions."""
