"""One file a training method: its losses and its training step."""
