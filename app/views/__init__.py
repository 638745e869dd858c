"""HTTP views: they read committed state and change nothing."""
