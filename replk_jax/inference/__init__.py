"""Images in, answers out."""
