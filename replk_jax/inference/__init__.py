"""Inference on images: classifiers and feature extractors."""
