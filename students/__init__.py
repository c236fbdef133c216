"""Every architecture, written once, and the run folders that hold trained models."""
