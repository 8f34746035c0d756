"""Videos to image-language-3D-flow triplets: sources, stages, pipeline."""
