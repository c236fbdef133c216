"""Official submissions to the BabyLM challenge: each year's table, the checks against it, and the folder to hand in."""
