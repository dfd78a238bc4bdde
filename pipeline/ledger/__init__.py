"""What is done and whether it is sound: survey, heartbeat, closing, verify, repair."""
