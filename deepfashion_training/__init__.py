"""Training on DeepFashion-with-masks: the data set, the driver and what the launcher checks first."""
