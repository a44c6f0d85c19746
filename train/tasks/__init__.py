"""What networks are trained for, a file each."""
