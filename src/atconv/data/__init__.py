"""Labeled pictures: where they come from, which side they are on, and how they become batches."""
