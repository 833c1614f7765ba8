"""Commands that write files of the repository, and how its commands read their command lines."""
