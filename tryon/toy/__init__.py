"""The embedded miniature: a drawn data set and tiny models of the real classes, made in seconds from a seed."""
