"""What families of models need: the registry, the table of families, their blocks, and architectures written here."""
