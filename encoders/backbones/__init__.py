"""Image backbones behind one interface."""
