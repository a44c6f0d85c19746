"""Experiments of object detection and instance segmentation."""
