"""Stochastic interpolants, samplers and the pipeline: diffusion without any run."""
