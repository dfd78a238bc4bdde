"""What is shown to people: fidelity of reconstructions, code usage, pictures."""
