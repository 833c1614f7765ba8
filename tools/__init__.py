"""What writes files of the repository: protos and the settings page."""
