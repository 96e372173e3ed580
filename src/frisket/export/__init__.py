"""What leaves the house: the leaderboard page (report), and the numbers others have published (published)."""
