"""Networks for object detection and instance segmentation: heads on any backbone."""
