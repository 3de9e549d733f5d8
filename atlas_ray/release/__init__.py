"""A release: a campaign's current truth as a dataset for others, in one of several layouts."""
