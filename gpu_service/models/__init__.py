"""What families of models need: the table of families, their blocks, and architectures written here."""
