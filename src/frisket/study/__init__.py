"""Studies: named arms, seeds, one judge; a table that says what differs and what does not."""
