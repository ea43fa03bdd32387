"""What is trained, exported and served: the Harmonizer and its parts."""
