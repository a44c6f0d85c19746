"""The run: its loop, step, evaluation and checkpoints. It knows no task."""
