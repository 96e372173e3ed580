"""Speed as ratios: `harness` measures, every other file holds ROWS; a new file with ROWS is found by itself."""
