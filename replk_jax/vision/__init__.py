"""Images: read, prepared for a network, and the classes of ImageNet."""
