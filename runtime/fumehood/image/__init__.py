"""Sandbox images: recipes and locks, building and importing, the store."""
