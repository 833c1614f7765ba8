"""Decides what runs next and steps it: engine, stepper, scheduler, requests, KV rows and budget."""
