"""`fiddler bench`: how fast a model is on this machine, how fast its memory lets it be, and where the time goes."""
