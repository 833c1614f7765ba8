"""`fiddler doctor`: what this machine has for serving, line by line, with what to do about what is missing."""
