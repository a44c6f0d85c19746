"""What a run reports: progress, metrics, profiles."""
