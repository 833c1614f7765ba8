"""What keeps a service going: lines of the log that nothing waits for, and what is looked at every few seconds."""
