"""A stranger's model folder, taken without running any of its code: every byte is judged before a library sees it."""
