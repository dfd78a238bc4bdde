"""Output for people: storage tables, inspection, previews, progress."""
