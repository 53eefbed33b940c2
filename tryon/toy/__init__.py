"""The embedded miniature: a drawn data set and tiny models of the real classes, there in seconds."""
