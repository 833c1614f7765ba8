"""What a GPU is asked first: ten minutes on one card, the most important first, resumable."""
