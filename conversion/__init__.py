"""Published checkpoints become PLT: `plt convert`."""
