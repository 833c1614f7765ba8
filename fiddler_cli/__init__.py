"""The command `fiddler`: every program of the project by one name. It knows them all, and none knows it."""
