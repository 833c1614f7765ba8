"""Answers to chats: their parts, and the form and the grammar of calls of functions within them."""
