"""Files: read, written whole or not at all, and checked."""
