"""Labeled images by index: folders, LMDB files, shards, data sets of timm, digits."""
