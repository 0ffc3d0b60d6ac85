"""Showing models: tables, trees, pictures."""
