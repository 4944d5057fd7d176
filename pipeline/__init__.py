"""Darkroom: a distributed batch renderer for latent diffusion models."""

__version__ = "0.1.0"
