"""Images and labels: where they come from, which split they are in, and how they become batches."""
