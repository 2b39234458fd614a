"""Diffusion: conditioning on metadata, LesionPipeline, training."""
