"""Image generation: `atconv generate`."""
