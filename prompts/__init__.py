"""Prompt variants: one file each, loaded and checked as a whole, rendered in a sandbox."""
