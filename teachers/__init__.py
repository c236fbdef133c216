"""What trained models say about a batch: signals, their caches, ensembles and weights."""
