"""The recipe, the objective, the one training loop, the stages and the command line."""
