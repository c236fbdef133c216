"""Scoring, minimal pairs, statistics and reports."""
