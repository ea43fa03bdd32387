"""SavedModels, the development server, the client and whole scenes."""

import harmonize_tf  # noqa: F401  before TensorFlow, whose start-up notes it silences
