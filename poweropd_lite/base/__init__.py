"""What knows no model: settings, files, errors, stopping, progress."""
