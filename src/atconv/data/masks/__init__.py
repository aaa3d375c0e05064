"""Images with a mask each: where they lie, and what their values mean."""
