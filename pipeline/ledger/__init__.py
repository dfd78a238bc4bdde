"""The state of a dataset and its integrity: survey, heartbeat, closing, verify, repair."""
