"""Sam -> masks, for people: `predictor` (embed once, prompt many) and `picture` (draw what came out)."""
