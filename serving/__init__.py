"""SavedModels, the development server, the client and whole scenes."""
