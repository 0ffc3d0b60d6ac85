"""Showing models: tables, trees, pictures, progress."""
