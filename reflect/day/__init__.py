"""The day: practice on tasks, reflection on groups of attempts, edits of lessons."""
