"""Classes that come one group after another, with a replay memory that is measured in stored bytes (`continual`)."""
