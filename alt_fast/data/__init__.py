"""Video files to clips: annotations, frame sampling, decoding, augmentation, datasets."""
