"""What runs the training loop: Ray Train, or this process and torchrun."""
