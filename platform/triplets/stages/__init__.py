"""What is done to a clip, as plain functions: sample, caption, track, lift, filter."""
