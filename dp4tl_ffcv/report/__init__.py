"""Results of a study: what they show, and the HTML report."""
