"""Sam -> masks, for people: embed once, prompt many."""
