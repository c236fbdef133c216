"""Recipes: YAML, read as package data."""
